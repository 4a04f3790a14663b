"""Tokens go that the text uses least; without a text, those that are merged last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class Frequency(Method[Nothing]):
    """Tokens are counted before the walk (`llmprune.vocabulary.choice`); no weight is looked at."""

    pattern: ClassVar = "vocabulary"
    calibration: ClassVar = {"dataset": "none"}
    serves: ClassVar = ("rows",)

    def score(self, weights: Weights, statistic: Nothing) -> Tensor:
        """1 for every table [1, 1]"""
        return torch.ones(1, 1)
