"""What a layer's outputs keep of their singular values when some of its inputs go.

Letters used in shapes: O outputs, I inputs, R inputs that go.
"""

from __future__ import annotations

import torch
from torch import Tensor

SEEN = 1024  # directions of the outputs that are looked at; eigenvalues cost the cube of their number


class Spectrum:
    """The singular values of a layer's outputs W x over many inputs x, from E[x x^T] alone.

    Outputs of more than SEEN features are seen through as many random directions, the same each time.

    They are the roots of the eigenvalues of W C W^T. When inputs go, that matrix is brought up to date from
    their columns, which costs O^2 R instead of the O I^2 of a new one.

    Args:
        weight: W [O, I].
        moments: C = E[x x^T] [I, I].
    """

    def __init__(self, weight: Tensor, moments: Tensor) -> None:
        self._weight = weight if len(weight) <= SEEN else _directions(weight) @ weight
        self._moments = moments
        self._crossed = self._weight @ moments
        self._outputs = self._crossed @ self._weight.T
        self.dense = _roots(self._outputs)

    def without(self, gone: Tensor) -> Tensor:
        """The singular values [min(O, SEEN)], ascending, once the inputs `gone` (bool [I]) are zero."""
        columns = self._weight[:, gone]
        crossed = self._crossed[:, gone] @ columns.T
        own = columns @ self._moments[gone][:, gone] @ columns.T
        return _roots(self._outputs - crossed - crossed.T + own)

    def lost(self, gone: Tensor) -> float:
        """By how much the singular values change, all together, as a share of their sum."""
        return float((self.dense - self.without(gone)).abs().sum() / self.dense.sum())


def _directions(weight: Tensor) -> Tensor:
    """Orthonormal directions [SEEN, O] of a layer's outputs."""
    drawn = torch.randn(len(weight), SEEN, generator=torch.Generator().manual_seed(0))
    directions: Tensor = torch.linalg.qr(drawn).Q
    return directions.T.to(weight)


def _roots(matrix: Tensor) -> Tensor:
    squares: Tensor = torch.linalg.eigvalsh(matrix)
    return squares.clamp_min(0).sqrt()
