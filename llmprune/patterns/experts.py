"""Whole experts of a mixture go, as many from every block unless asked otherwise; work per token stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.patterns.base import Pattern
from llmprune.tensors import ops


@dataclass(frozen=True)
class Experts(Pattern):
    """Experts compete within their block; where a router chooses among groups, within their group."""

    prunes: ClassVar = "experts"
    method: ClassVar = "reap"

    @property
    def removed(self) -> str:
        """Whole experts."""
        return "whole experts"

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """[E] -> bool [E], as many in each of `units` groups"""
        grouped = score.reshape(max(units, 1), -1)
        kept: Tensor = ops.keep_largest(grouped, round(sparsity * grouped.shape[1]))
        return kept.flatten()
