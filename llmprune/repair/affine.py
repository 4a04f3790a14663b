"""Refit weights and bias together to the dense layer's outputs.

The best affine map: the fit of `least_squares` on centred inputs, and the bias that restores the mean output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.repair.base import Refit, Repaired, refitted
from llmprune.tensors.statistics import CentredGram


@dataclass(frozen=True)
class Affine(Refit[CentredGram]):
    """On the calibration inputs at least as good as `mean_bias` and, up to the ridge, `least_squares`."""

    needs: ClassVar = CentredGram
    gives_bias: ClassVar = True

    def fitted(self, weight: Tensor, keep: Tensor, statistic: CentredGram, ridge: float) -> Repaired:
        """V = W_K + W_R C_RK (C_KK + r I)^-1 with C = cov(x), b = W E[x] - V E[x_K]"""
        refit, ridge = refitted(weight, keep, statistic.covariance, ridge)
        return Repaired(refit, (weight.double() - refit) @ statistic.mean, {"ridge": ridge})
