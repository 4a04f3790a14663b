"""Refit the block before a removed span to the hidden states at the end of the span.

ReplaceMe (Shopkhoev et al., 2025, arXiv:2505.02819) multiplies the output layer of the feed-forward network
by a matrix [D, D]. Here its whole weight [D, F] is fitted, of which that is a special case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from llmprune.repair.base import Repair, Repaired
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class Span(Repair[Nothing]):
    """Takes one more forward pass, of the dense model, to learn what the spans put out."""

    serves: ClassVar = ("blocks",)
    refits_seams: ClassVar = True

    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Penalty on moving a weight, as a share of the mean diagonal of the inputs' second moments."""

    parts: Literal["ffn", "all"] = "all"
    """Refit the output layer of the feed-forward network alone, or that of the attention before it too."""

    def apply(self, weight: Tensor, keep: Tensor, statistic: Nothing) -> Repaired:
        """Leave the blocks themselves as they are."""
        return Repaired(weight * keep)
