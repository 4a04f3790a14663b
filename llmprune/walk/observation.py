"""What calibration measures of one site.

Letters used in shapes: I input features, S sampled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmprune.tensors.statistics import Statistic


@dataclass
class Observation:
    """What calibration measured of the inputs of one site: a statistic of all tokens, and a sample."""

    statistic: Statistic
    every: int
    rows: list[Tensor] = field(default_factory=list)

    def update(self, x: Tensor) -> None:
        """Add the activations `x` [..., I]."""
        x = x.reshape(-1, x.shape[-1])
        # Spread over all batches, and not at their starts: a sequence's first token is unlike the others.
        start = (self.every // 2 - self.statistic.tokens) % self.every
        self.statistic.update(x)
        self.rows.append(x[start :: self.every].clone())  # a view would keep all of `x` in memory

    @property
    def sample(self) -> Tensor:
        """The sampled inputs [S, I]."""
        return torch.cat(self.rows)
