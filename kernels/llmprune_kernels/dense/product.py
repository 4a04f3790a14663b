"""Tokens times one dense matrix, or gate and up at once, with everything that follows in the same kernel.

The weight is the left operand, so that few tokens are the narrow side of a tile. Reading x once for gate and
up, and writing their gated product alone, saves three of five passes over the channels.

Letters used in shapes: M tokens, N outputs, K inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmprune_kernels.epilogue import finish, gated, write_part


@triton.jit
def add_product(weight_ptr, x, total, rows, k, N, K, UPCAST: tl.constexpr):
    """total [BLOCK_N, BLOCK_M] plus a tile of the weight [N, K] times x [BLOCK_K, BLOCK_M]."""
    at = rows.to(tl.int64)[:, None] * K + k[None, :]
    weight = tl.load(weight_ptr + at, (rows < N)[:, None] & (k < K)[None, :], 0)
    if UPCAST:  # the interpreter multiplies the bits of bfloat16 as integers
        weight = weight.to(tl.float32)
    return tl.dot(weight, x, total, input_precision="ieee")


@triton.jit(do_not_specialize=["M"])
def product_kernel(
    x_ptr,  # [M, K]
    weight_ptr,  # [N, K]; the gate if there are two halves
    up_ptr,  # [N, K], read if there are two halves
    bias_ptr,  # [N]
    residual_ptr,  # [M, N]
    out_ptr,  # [M, N]; if SPLITS > 1, float32 [SPLITS, HALVES, M, N]
    M,
    N,
    K,
    HALVES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """out = x weight^T with bias and residual, or silu(x gate^T) * (x up^T) with two halves."""
    split = tl.program_id(2)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    other = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for first in range(split * BLOCK_K, K, SPLITS * BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        x = tl.trans(
            tl.load(x_ptr + m.to(tl.int64)[:, None] * K + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0)
        )
        if UPCAST:
            x = x.to(tl.float32)
        total = add_product(weight_ptr, x, total, n, k, N, K, UPCAST)
        if HALVES == 2:
            other = add_product(up_ptr, x, other, n, k, N, K, UPCAST)
    rows, tokens = n[:, None], m[None, :]
    if SPLITS > 1:
        write_part(total, rows, tokens, split * HALVES, out_ptr, M, N)
        if HALVES == 2:
            write_part(other, rows, tokens, split * HALVES + 1, out_ptr, M, N)
    else:
        if HALVES == 2:
            total = gated(total, other)
        finish(total, rows, tokens, bias_ptr, residual_ptr, out_ptr, M, N, HAS_BIAS, HAS_RESIDUAL)
