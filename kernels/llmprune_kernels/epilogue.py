"""What every product ends with: bias and residual, or the gate; and the sum of what programs shared out.

Letters used in shapes: M tokens, N outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gated(gate, up):
    """silu(gate) * up, in float32."""
    return gate / (1 + tl.exp(-gate)) * up


@triton.jit
def write_part(total, n, m, part, parts_ptr, M, N):
    """Write a tile of sums as part of float32 [SPLITS, HALVES, M, N], which `combine_kernel` adds up."""
    at = (part.to(tl.int64) * M + m) * N + n
    tl.store(parts_ptr + at, total, (n < N) & (m < M))


@triton.jit
def finish(
    total, n, m, bias_ptr, residual_ptr, out_ptr, M, N, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr
):  # fmt: skip
    """Write a tile of sums as the result [M, N]."""
    mask = (n < N) & (m < M)
    at = m.to(tl.int64) * N + n
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, n < N, 0).to(tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual_ptr + at, mask, 0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["M"])
def combine_kernel(
    parts_ptr,  # float32 [SPLITS, HALVES, M, N]
    bias_ptr,  # [N]
    residual_ptr,  # [M, N]
    out_ptr,  # [M, N]
    M,
    N,
    HALVES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the parts, always in the same order, and finish."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(1) + tl.arange(0, 1)
    size = M.to(tl.int64) * N
    at = m.to(tl.int64) * N + n
    total = tl.zeros([BLOCK], tl.float32)
    other = tl.zeros([BLOCK], tl.float32)
    for split in range(SPLITS):
        total += tl.load(parts_ptr + split * HALVES * size + at, n < N, 0)
        if HALVES == 2:
            other += tl.load(parts_ptr + (split * HALVES + 1) * size + at, n < N, 0)
    if HALVES == 2:
        total = gated(total, other)
    finish(total, n, m, bias_ptr, residual_ptr, out_ptr, M, N, HAS_BIAS, HAS_RESIDUAL)
