"""No compensation for the removed units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.repair.base import Repair, Repaired
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class Unrepaired(Repair[Nothing]):
    """The kept weights do not change."""

    serves: ClassVar = ("weights", "units", "experts", "blocks", "rows")
    by_rows: ClassVar = True

    def apply(self, weight: Tensor, keep: Tensor, statistic: Nothing) -> Repaired:
        """V = W_K"""
        return Repaired(weight * keep)
