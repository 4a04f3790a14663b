"""Wanda (Sun et al., 2024, arXiv:2306.11695): |weight| times the norm of its input."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import InputNorm


@dataclass(frozen=True)
class Wanda(Method[InputNorm]):
    """Weights of one output row compete with one another; the kept weights do not change."""

    needs: ClassVar = InputNorm
    propagation: ClassVar = "dense"  # better than `layer` at the same cost: see llmprune/README.md

    def score(self, weights: Weights, statistic: InputNorm) -> Tensor:
        """Return |W_ij| ||X_j|| [O, I], equation 1 of the paper (the norm up to a constant)."""
        return weights.matrix.abs().float().mul_(statistic.value)
