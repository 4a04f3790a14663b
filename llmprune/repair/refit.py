"""Give the single weights that stay their best values for the mask, whatever chose it.

The error E||(W - V) x||^2 is minimised over all V with the zeros of the mask, by conjugate gradients: every
row has a mask of its own, and a factorisation for each would take far longer (ALPS, Meng et al., 2024,
arXiv:2406.07831, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from llmprune.repair.base import Repair, Repaired
from llmprune.tensors.fit import conjugate_gradients
from llmprune.tensors.statistics import Gram


@dataclass(frozen=True)
class MaskedRefit(Repair[Gram]):
    """On the calibration inputs never worse than the weights as they were."""

    needs: ClassVar = Gram
    serves: ClassVar = ("weights",)
    by_rows: ClassVar = True

    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Penalty on moving a weight, where inputs have unit mean square."""

    steps: Annotated[int, Field(ge=1)] = 20
    """Of conjugate gradients."""

    def apply(self, weight: Tensor, keep: Tensor, statistic: Gram) -> Repaired:
        """V = W o M + S, S the step that fits what W - W o M put out"""
        scale = statistic.scale
        removed = weight.float().masked_fill(keep, 0) * scale
        # Inputs that were always zero get a unit scale, and no part in the fit.
        gram = statistic.correlations(0.0)
        cross = removed @ gram
        gram.diagonal().add_(self.ridge)
        step = conjugate_gradients(gram, cross, keep, self.steps) / scale
        return Repaired(weight.float().masked_fill(~keep, 0) + step)
