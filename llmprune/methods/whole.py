"""Whole blocks go where the budget says so (`--pattern blocks`): nothing inside them is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class Whole(Method[Nothing]):
    """The allocation is the criterion: `sleb`, `shortgpt`, `angular` or `laptop`."""

    pattern: ClassVar = "blocks"
    allocation: ClassVar = "sleb"
    serves: ClassVar = ("blocks",)

    def score(self, weights: Weights, statistic: Nothing) -> Tensor:
        """1 for every block [1, 1]"""
        return torch.ones(1, 1)
