"""How the singular values of a layer's outputs change when some of its inputs are removed.

Letters used in shapes: O outputs, I inputs, R removed inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIRECTIONS = 1024  # most output dimensions to analyse; the cost of eigenvalues is cubic in them


class Spectrum:
    """The singular values of a layer's outputs W x over many inputs x, computed from E[x x^T].

    They are the square roots of the eigenvalues of W C W^T. When inputs are removed, this matrix is updated
    from their columns, which costs O^2 R operations; computing it again would cost O I^2.

    Outputs of more than DIRECTIONS features are projected onto that many random directions, always the same.

    Args:
        weight: W [O, I].
        moments: C = E[x x^T] [I, I].
    """

    def __init__(self, weight: Tensor, moments: Tensor) -> None:
        self._weight = weight if len(weight) <= DIRECTIONS else _directions(weight) @ weight
        self._moments = moments
        self._crossed = self._weight @ moments
        self._outputs = self._crossed @ self._weight.T
        self.dense = _roots(self._outputs)

    def without(self, removed: Tensor) -> Tensor:
        """Return the ascending singular values [min(O, DIRECTIONS)] without the inputs `removed` [I]."""
        columns = self._weight[:, removed]
        # (W - W_R) C (W - W_R)^T, expanded; W_R holds the removed columns.
        crossed = self._crossed[:, removed] @ columns.T
        own = columns @ self._moments[removed][:, removed] @ columns.T
        return _roots(self._outputs - crossed - crossed.T + own)

    def change(self, removed: Tensor) -> float:
        """Return the sum of the absolute changes of the singular values, as a share of their sum."""
        return float((self.dense - self.without(removed)).abs().sum() / self.dense.sum())


def _directions(weight: Tensor) -> Tensor:
    """Return random orthonormal directions [DIRECTIONS, O] of a layer's outputs."""
    # A fixed seed on the CPU: changes are comparable between visits, and the same on every device.
    drawn = torch.randn(len(weight), DIRECTIONS, generator=torch.Generator().manual_seed(0))
    directions: Tensor = torch.linalg.qr(drawn).Q
    return directions.T.to(weight)


def _roots(matrix: Tensor) -> Tensor:
    squares: Tensor = torch.linalg.eigvalsh(matrix)
    return squares.clamp_min(0).sqrt()  # rounding can make the smallest slightly negative
