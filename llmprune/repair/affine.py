"""Weights and bias are refitted together to the dense layer's outputs.

Least squares on centred inputs, as in `least_squares`, with the bias of `mean_bias`: the best affine map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmprune.repair.base import Refit, Repaired, refitted
from llmprune.tensors.statistics import CentredGram


@dataclass(frozen=True)
class Affine(Refit[CentredGram]):
    """On the calibration inputs never worse than `mean_bias`, nor, up to the ridge, `least_squares`."""

    needs: ClassVar = CentredGram
    gives_bias: ClassVar = True

    def mend(self, weight: Tensor, keep: Tensor, statistic: CentredGram) -> Repaired:
        """V = W_K + W_R C_RK (C_KK + r I)^-1 with C = cov(x), b = W E[x] - V E[x_K]"""
        mean = statistic.mean
        covariance = statistic.value.double() - torch.outer(mean, mean)
        refit, ridge = refitted(weight, keep, covariance, self.ridge)
        return Repaired(refit, (weight.double() - refit) @ mean, {"ridge": ridge})
