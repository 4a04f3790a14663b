"""What calibration tells of a layer's inputs in two models: as pruned so far, and dense.

Letters used in shapes: O outputs, T tokens, I input features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmprune.tensors.statistics import Gram, Total

TARGET_RIDGE = 0.05  # share of the inputs' mean square; less follows the calibration text too closely


class CrossGram(Gram):
    """The Gram matrix X^T X, and (X_d - X)^T X for the inputs X_d of the same tokens in the dense model."""

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self._shift = torch.zeros(features, features, device=device)
        self._map: Tensor | None = None

    def compare(self, dense: Tensor, x: Tensor) -> None:
        """Account for the inputs [T, I] in the dense model, and the activations `x` that `update` got."""
        x = x.float()
        self._shift.addmm_((dense.to(x.device).float() - x).T, x)
        self._map = None

    def add_up(self, total: Total) -> None:
        """Account for what the summaries of other processes saw."""
        super().add_up(total)
        total(self._shift)

    def target(self, weight: Tensor) -> Tensor:
        """The weight V, float32 [O, I], whose outputs X V^T are nearest to the dense model's X_d W^T.

        V = W + W (X_d - X)^T X (X^T X + r I)^-1 (GPTAQ, arXiv:2504.02692, with a ridge r that pulls to W)
        """
        if self._map is None:
            gram = self.value.double()
            gram.diagonal().add_(TARGET_RIDGE * float(gram.diagonal().mean()) or 1.0)
            factor = torch.linalg.cholesky(gram)
            self._map = torch.cholesky_solve(self._shift.T.double() / self.tokens, factor).T.float()
        weight = weight.float()
        return weight + weight @ self._map

    @classmethod
    def bytes_for(cls, features: int) -> int:
        """Memory that a summary of `features` inputs holds, in bytes."""
        return super().bytes_for(features) + (4 + 4 + 8) * features * features
