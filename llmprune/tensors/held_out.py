"""What calibration tells of a layer's inputs, with a part of the text held out to judge what was fitted.

Letters used in shapes: T tokens, I input features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmprune import ranks
from llmprune.tensors.statistics import CentredGram, Total

EVERY = 4  # of so many batches, one is held out
RIDGES = (0.001, 0.01, 0.1, 1.0)  # that it chooses from
USUAL = 0.01  # where nothing is held out


class HeldOutGram(CentredGram):
    """The Gram matrix of all tokens, and beside it that of every fourth batch."""

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self.held = CentredGram(features, device)
        self._batches = ranks.before()

    def update(self, x: Tensor) -> None:
        """Account for the activations `x` [T, I]."""
        super().update(x)
        self._batches += 1
        if self._batches % EVERY == 0:
            self.held.update(x)

    def add_up(self, total: Total) -> None:
        """Account for what the summaries of other processes saw."""
        super().add_up(total)
        self.held.add_up(total)

    @property
    def rest(self) -> CentredGram:
        """The same of the tokens that are not held out."""
        found = CentredGram(len(self._sum), self._sum.device)
        found.tokens = self.tokens - self.held.tokens
        found._sum, found._total = self._sum - self.held._sum, self._total - self.held._total
        return found

    @classmethod
    def bytes_for(cls, features: int) -> int:
        """Memory that a summary of `features` inputs holds, in bytes."""
        return super().bytes_for(features) + 2 * 4 * features * features
