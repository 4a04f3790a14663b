"""Units with small rows go: the norm of the weights that compute a channel, or a head's values. Looks at no
data.

The baseline of arXiv:2501.15296, which scores the rows of the gate projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class RowNorm(Method[Nothing]):
    """Reads the first factor only, as the original does."""

    pattern: ClassVar = {"name": "units", "parts": "ffn"}
    serves: ClassVar = ("units",)

    def score(self, weights: Weights, statistic: Nothing) -> Tensor:
        """||W_i|| of the gate projection, or of the only one, float32 [I]"""
        rows = weights.rows[0] if weights.rows else weights.matrix.T
        norms: Tensor = rows.float().norm(dim=1)
        return norms
