"""Remove any single weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llmprune.patterns.base import Pattern
from llmprune.tensors import ops

Compete = Literal["row", "matrix"]


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Weights compete within their output `row`, or within the whole `matrix`."""

    compete: Compete = "row"
    """By default the choice of the method."""

    @property
    def by_rows(self) -> bool:
        """Whether no weight competes with those of another row."""
        return self.compete == "row"

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """[O, I] -> bool [O, I]; drops exactly round(sparsity * n) of the n weights that compete."""
        if self.compete == "row":
            return ops.keep_largest(score, round(sparsity * score.shape[1]))
        return ops.keep_largest_of_all(score, round(sparsity * score.numel()))
