"""What calibration tells of the experts of a block: how often each is chosen, and how much it then adds.

Letters used in shapes: T tokens, E experts.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from llmprune.tensors.statistics import Statistic


class Contributions(Statistic):
    """Sums over the tokens that an expert computes.

    Fed pairs of norms: of an expert's output as it is added to the others, g ||f(x)||, and before it is
    weighed, ||f(x)||; both are 0 where the token does not reach the expert.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self.tokens_seen = torch.zeros(features, device=device, dtype=torch.float64)
        self.weighted = torch.zeros_like(self.tokens_seen)
        self.norms = torch.zeros_like(self.tokens_seen)

    def update(self, x: Tensor) -> None:
        """Account for the norms `x` [T, 2 E]: weighted, then not."""
        super().update(x)
        weighted, norms = x.double().chunk(2, dim=-1)
        self.tokens_seen += (norms != 0).sum(0)
        self.weighted += weighted.sum(0)
        self.norms += norms.sum(0)

    def merge(self, later: Self) -> None:
        """Account for what another summary saw after this one."""
        self.tokens += later.tokens
        self.tokens_seen += later.tokens_seen
        self.weighted += later.weighted
        self.norms += later.norms

    def finite(self) -> bool:
        """Whether every norm so far was a finite number."""
        return bool(self.norms.isfinite().all() and self.weighted.isfinite().all())

    @classmethod
    def bytes_for(cls, features: int) -> int:
        """Memory that a summary of `features` experts holds, in bytes."""
        return 24 * features
