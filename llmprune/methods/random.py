"""Random pruning: the floor that every other method has to beat."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class Random(Method[Nothing]):
    """Any weight is as likely to go as any other."""

    serves: ClassVar = ("weights", "units", "experts")

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The same seed drops the same weights, on every device."""

    def score(self, weights: Weights, statistic: Nothing) -> Tensor:
        """Uniform noise [O, I], a function of the seed and of the layer's place in the model."""
        noise = torch.Generator().manual_seed(self.seed * 1_000_003 + weights.index)
        return torch.rand(weights.matrix.shape, generator=noise).to(weights.matrix.device)
