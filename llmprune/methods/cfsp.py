"""CFSP (Wang et al., 2025, arXiv:2409.13199): remove channels that matter little to every output, more
of them in blocks that change their input little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import InputNorm


@dataclass(frozen=True)
class Cfsp(Method[InputNorm]):
    """Used with the allocation `block_influence`. Removes channels only, unless `pattern.parts` is set."""

    needs: ClassVar = InputNorm
    propagation: ClassVar = "dense"
    pattern: ClassVar = {"name": "units", "parts": "ffn"}
    allocation: ClassVar = "block_influence"
    serves: ClassVar = ("units",)

    importance: Literal["activation", "relative"] = "activation"
    """`activation` is the ranking of the authors' code, in which the weights cancel out. It gave a lower loss
    than the paper's `relative` in all our measurements (llmprune/README.md, Decisions)."""

    def score(self, weights: Weights, statistic: InputNorm) -> Tensor:
        """Return float32 [I]: ||X_i||, or the down-projection's term of equation 8.

        That term is sum_j |W_ji| ||X_i|| / sum_k |W_jk| ||X_k||. The terms of the up and gate projections are
        omitted: normalised by L1 norms, they are the same for all channels.
        """
        if self.importance == "activation":
            return statistic.value
        # Clamped below: an output whose weights are all zero would divide by zero.
        share = weights.matrix.float().abs() * statistic.value
        return (share / share.sum(1, keepdim=True).clamp_min(1e-30)).sum(0)
