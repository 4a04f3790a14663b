"""REAP (Lasby et al., 2025, arXiv:2510.13999): experts go that add least to the tokens that choose them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.contributions import Contributions


@dataclass(frozen=True)
class Reap(Method[Contributions]):
    """Router-weighted expert activation pruning; experts that no token chose go first."""

    needs: ClassVar = Contributions
    pattern: ClassVar = "experts"
    serves: ClassVar = ("experts",)

    def score(self, weights: Weights, statistic: Contributions) -> Tensor:
        """float64 [E], the mean of g ||f(x)|| over the tokens of an expert"""
        return statistic.weighted / statistic.tokens_seen.clamp_min(1)
