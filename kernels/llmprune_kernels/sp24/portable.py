"""Tokens times a packed 2:4 matrix wherever Triton runs, its interpreter included; and its dense form.

The weight is decoded to the four columns of its groups, and the input is split the same way, so a product is
four dense ones. Byte permutation with looked-up selectors decodes on NVIDIA, shifts do elsewhere.

Letters used in shapes: M tokens, N outputs, K inputs; T tiles of 16 outputs, S steps of 32 inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmprune_kernels.epilogue import finish, write_part
from llmprune_kernels.sp24.decode import columns, quads, spread, words


@triton.jit
def dot(left, right, total, UPCAST: tl.constexpr):
    """total + left right^T."""
    if UPCAST:  # the interpreter multiplies the bits of bfloat16 as integers
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, tl.trans(right), total, input_precision="ieee")


@triton.jit(do_not_specialize=["M", "TILES", "STEPS"])
def portable_kernel(
    x_ptr,  # [M, K]
    values_ptr,  # int32 [T, S, 32, 4]; with two halves, the gate's tiles and then the other's
    meta_ptr,  # int32 [T, S/2, 32]
    bias_ptr,  # [N]
    residual_ptr,  # [M, N]
    out_ptr,  # [M, N]; if PARTS, float32 [SPLITS, HALVES, M, N]
    M,
    N,
    K,
    TILES,  # T, of one half
    STEPS,  # S/2
    HALVES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
    PRMT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """out = x weight^T with bias and residual, or parts of it; a program has one half of the weight."""
    programs = tl.cdiv(TILES, R)
    half = tl.program_id(1) // programs
    tile = tl.program_id(1) % programs * R
    split = tl.program_id(2)
    values_ptr += half.to(tl.int64) * TILES * STEPS * 256
    meta_ptr += half.to(tl.int64) * TILES * STEPS * 32
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros([16 * R, BLOCK_M], tl.float32)
    for first in range(split * C, STEPS, SPLITS * C):
        k = first * 64 + tl.arange(0, 64 * C)
        x = tl.load(x_ptr + m.to(tl.int64)[:, None] * K + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0)
        even, odd = tl.split(tl.reshape(x, [BLOCK_M, 16 * C, 2, 2]))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        pairs, meta = words(values_ptr, meta_ptr, tile, first, TILES, STEPS, R, C)
        c0, c1, c2, c3 = columns(pairs, meta, R, C, PRMT, x.dtype)
        total = dot(c0, x0, total, UPCAST)
        total = dot(c1, x1, total, UPCAST)
        total = dot(c2, x2, total, UPCAST)
        total = dot(c3, x3, total, UPCAST)
    n = (tile * 16 + tl.arange(0, 16 * R))[:, None]
    if PARTS:
        write_part(total, n, m[None, :], split * HALVES + half, out_ptr, M, N)
    else:
        finish(total, n, m[None, :], bias_ptr, residual_ptr, out_ptr, M, N, HAS_BIAS, HAS_RESIDUAL)


@triton.jit(do_not_specialize=["TILES", "STEPS"])
def unpack_kernel(values_ptr, meta_ptr, out_ptr, N, K, TILES, STEPS, R: tl.constexpr, C: tl.constexpr):
    """The dense matrix [N, K], written as int64 [N, K/4]: a group at a time."""
    tile = tl.program_id(0) * R
    first = tl.program_id(1) * C
    pairs, meta = words(values_ptr, meta_ptr, tile, first, TILES, STEPS, R, C)
    quad = quads(pairs, spread(meta, R, C))
    n = tile * 16 + tl.arange(0, 16 * R)
    group = first * 16 + tl.arange(0, 16 * C)
    at = n.to(tl.int64)[:, None] * (K // 4) + group[None, :]
    tl.store(out_ptr + at, quad, (n < N)[:, None] & (group < K // 4)[None, :])
