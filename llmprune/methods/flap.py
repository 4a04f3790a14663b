"""FLAP (An et al., 2024, arXiv:2312.11983): remove the units whose outputs fluctuate least, keep their mean.

An output that hardly varies contributes almost a constant, which a bias can replace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import InputMoments


@dataclass(frozen=True)
class Flap(Method[InputMoments]):
    """Used with the allocation `global_threshold` and the repair `mean_bias` by default."""

    needs: ClassVar = InputMoments
    propagation: ClassVar = "dense"
    pattern: ClassVar = "units"
    allocation: ClassVar = "global_threshold"
    repair: ClassVar = "mean_bias"
    serves: ClassVar = ("units",)

    metric: Literal["WIFV", "IFV", "WIFN"] = "WIFV"
    """Weighted fluctuation, fluctuation, or weighted norm of the inputs."""

    square_heads: bool = True
    """True to square the metric of heads once more, as in the authors' code. This balances heads against
    channels, and gave the lower loss in all our measurements (llmprune/README.md, Decisions)."""

    def score(self, weights: Weights, statistic: InputMoments) -> Tensor:
        """float64 [I]. WIFV is the paper's equation 5: variance of the input times ||W_:j||^2."""
        metric = self._metric(weights.matrix.float(), statistic)
        # Channels are units of one input each; a group of heads has many.
        heads = weights.units < weights.matrix.shape[1]
        return metric.square() if heads and self.square_heads else metric

    def _metric(self, matrix: Tensor, statistic: InputMoments) -> Tensor:
        if self.metric == "IFV":
            return statistic.variance
        if self.metric == "WIFV":
            return statistic.variance * matrix.square().sum(0)
        # The root mean square, from the variance (divided by tokens - 1) and the mean.
        norm = (statistic.variance * (1 - 1 / statistic.tokens) + statistic.mean.square()).sqrt()
        return norm * matrix.abs().mean(0)
