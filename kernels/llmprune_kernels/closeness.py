"""Whether two ways of computing something agree but for rounding."""

from __future__ import annotations

from torch import Tensor

CLOSE = 0.02
"""Two results in 16 bits, each rounded a few times; one of something else is further off than this."""


def distance(found: Tensor, wanted: Tensor) -> float:
    """How far a result is off, as a share of the norm of what was wanted."""
    error = (found.float() - wanted.float()).norm()
    return float(error) / max(float(wanted.float().norm()), 1e-30)
