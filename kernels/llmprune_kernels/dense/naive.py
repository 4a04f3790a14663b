"""What the dense kernels compute, in plain torch: their specification, and what runs where they cannot.

Letters used in shapes: M tokens, N outputs, K inputs, I channels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """x [M, K] times the transpose of a weight [N, K], plus bias [N] and residual [M, N]; sums in float32."""
    total = x.float() @ weight.float().T
    for term in (bias, residual):
        total = total if term is None else total + term.float()
    return total.to(x.dtype)


def swiglu(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """silu(x gate^T) * (x up^T), [M, I], from weights [I, K]; nothing is rounded in between."""
    return (silu(x.float() @ gate.float().T) * (x.float() @ up.float().T)).to(x.dtype)
