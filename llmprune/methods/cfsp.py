"""CFSP (Wang et al., 2025, arXiv:2409.13199): channels that matter little to every output go, and blocks
that change their input little lose more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import InputNorm


@dataclass(frozen=True)
class Cfsp(Method[InputNorm]):
    """Goes with `block_influence`. Cuts channels only, unless `pattern.parts` asks for more."""

    needs: ClassVar = InputNorm
    propagation: ClassVar = "dense"
    pattern: ClassVar = {"name": "units", "parts": "ffn"}
    allocation: ClassVar = "block_influence"
    serves: ClassVar = ("units",)

    importance: Literal["activation", "relative"] = "activation"
    """`activation` is what the authors' code ranks by, where the weights cancel out; it lost less than the
    paper's `relative` wherever we measured (llmprune/README.md, Decisions)."""

    def score(self, weights: Weights, statistic: InputNorm) -> Tensor:
        """float32 [I], ||X_i||, or the down-projection's term of equation 8, sum_j |W_ji| ||X_i|| / sum_k
        |W_jk| ||X_k||.

        Normalised by L1 norms, the terms of the up and gate projections are the same for all channels.
        """
        if self.importance == "activation":
            return statistic.value
        share = weights.matrix.float().abs() * statistic.value
        return (share / share.sum(1, keepdim=True).clamp_min(1e-30)).sum(0)
