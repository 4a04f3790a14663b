"""Expert activation norm (a baseline of REAP, arXiv:2510.13999): experts go whose outputs sum to least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.contributions import Contributions


@dataclass(frozen=True)
class ExpertActivationNorm(Method[Contributions]):
    """Favours experts that many tokens choose, whatever weight the router gives them."""

    needs: ClassVar = Contributions
    pattern: ClassVar = "experts"
    serves: ClassVar = ("experts",)

    def score(self, weights: Weights, statistic: Contributions) -> Tensor:
        """float64 [E], the sum of ||f(x)|| over the tokens of an expert"""
        return statistic.norms
