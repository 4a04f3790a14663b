"""What the 2:4 kernels compute, in plain torch: their specification, and what runs where they cannot.

Letters used in shapes: M tokens, N outputs, K inputs, I channels.
"""

from __future__ import annotations

from torch import Tensor

from llmprune_kernels.dense import naive
from llmprune_kernels.formats.fragments import Fragments


def linear(
    x: Tensor, weight: Fragments, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """x [M, K] times the transpose of the weight [N, K], plus a bias [N] and a residual [M, N]."""
    return naive.linear(x, weight.unpack().to_dense(), bias, residual)


def swiglu(x: Tensor, gate: Fragments, up: Fragments) -> Tensor:
    """silu(x gate^T) * (x up^T), [M, I], from weights [I, K]."""
    return naive.swiglu(x, gate.unpack().to_dense(), up.unpack().to_dense())
