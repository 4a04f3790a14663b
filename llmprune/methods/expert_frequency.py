"""Experts go that the fewest tokens choose: the baseline that every other criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.contributions import Contributions


@dataclass(frozen=True)
class ExpertFrequency(Method[Contributions]):
    """Blind to what an expert puts out."""

    needs: ClassVar = Contributions
    pattern: ClassVar = "experts"
    serves: ClassVar = ("experts",)

    def score(self, weights: Weights, statistic: Contributions) -> Tensor:
        """float64 [E], the tokens of an expert"""
        return statistic.tokens_seen
