"""Tokens in the order in which the sparse tensor core reads its right operand.

With more than eight tokens, reading them in rows would touch eight lines of cache an instruction; in this
order a lane's four registers lie side by side.

Letters used in shapes: M tokens, K inputs; lane = 4 g + t.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M", "STEPS"])
def pack_kernel(x_ptr, out_ptr, M, K, STEPS, BLOCK: tl.constexpr):
    """int32 words of x [M, K/2] as [tiles of 8 tokens, 2 STEPS, 32 lanes, 4 registers]; else zeros."""
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = word // 4 % 32
    m = tl.program_id(1) * 8 + lane // 4
    pair = word // 128 * 16 + lane % 4 + word % 4 * 4
    there = word < STEPS * 256
    x = tl.load(x_ptr + m.to(tl.int64) * (K // 2) + pair, there & (m < M) & (pair < K // 2), 0)
    tl.store(out_ptr + tl.program_id(1).to(tl.int64) * STEPS * 256 + word, x, there)
