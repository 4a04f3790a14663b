"""Magnitude pruning (Han et al., 2015, arXiv:1506.02626): small weights go. Looks at no data."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class Magnitude(Method[Nothing]):
    """Weights of one matrix compete with one another, as in the baselines of Wanda and SparseGPT."""

    compete: ClassVar = "matrix"

    def score(self, weights: Weights, statistic: Nothing) -> Tensor:
        """|W| [O, I]"""
        return weights.matrix.abs()
