"""Refit the kept weights to the dense layer's outputs (OSSCAR, arXiv:2403.12983; Tyr,
arXiv:2503.09657).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.repair.base import Refit, Repaired, refitted
from llmprune.tensors.statistics import Gram


@dataclass(frozen=True)
class LeastSquares(Refit[Gram]):
    """The optimal repair by weights alone, up to the ridge; needs no bias."""

    needs: ClassVar = Gram

    def fitted(self, weight: Tensor, keep: Tensor, statistic: Gram, ridge: float) -> Repaired:
        """V = W_K + W_R C_RK (C_KK + r I)^-1 with C = E[x x^T]"""
        refit, ridge = refitted(weight, keep, statistic.value, ridge)
        return Repaired(refit, notes={"ridge": ridge})
