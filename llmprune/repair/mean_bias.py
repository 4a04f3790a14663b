"""Turn the mean contribution of the removed units into a bias (FLAP, arXiv:2312.11983, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.repair.base import Repair, Repaired
from llmprune.tensors.statistics import InputMoments


@dataclass(frozen=True)
class MeanBias(Repair[InputMoments]):
    """The optimal repair by a bias alone."""

    needs: ClassVar = InputMoments
    gives_bias: ClassVar = True

    def apply(self, weight: Tensor, keep: Tensor, statistic: InputMoments) -> Repaired:
        """V = W_K, b = W_R E[x_R]"""
        return Repaired(weight * keep, weight[:, ~keep].double() @ statistic.mean[~keep])
