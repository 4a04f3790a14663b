"""What calibration measures of sites.

Letters used in shapes: I input features, S sampled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmprune.tensors.cross_gram import CrossGram
from llmprune.tensors.statistics import Statistic


@dataclass
class Observation:
    """What calibration measured of the inputs of one site: a statistic of all tokens, and a sample."""

    statistic: Statistic
    every: int
    """Of so many tokens one is kept as a sample; none if 0."""

    rows: list[Tensor] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    """Of experts: the tokens that reached one, and those that were added because they were too few."""

    def update(self, x: Tensor, dense: Tensor | None = None) -> None:
        """Add the activations `x` [..., I], and those of the same tokens in the dense model."""
        x = x.reshape(-1, x.shape[-1])
        if not len(x):  # no token of this batch reaches the expert
            return
        # Spread over all batches, and not at their starts: a sequence's first token is unlike the others.
        start = (self.every // 2 - self.statistic.tokens) % max(self.every, 1)
        self.statistic.update(x)
        if dense is not None:
            self.statistic.of(CrossGram).compare(dense.reshape(x.shape), x)
        if self.every:
            self.rows.append(x[start :: self.every].clone())  # a view would keep all of `x` in memory

    @property
    def sample(self) -> Tensor:
        """The sampled inputs [S, I]."""
        return torch.cat(self.rows)


@dataclass
class Observed:
    """Measurements of the dense model that pruning can reuse instead of repeating them."""

    seen: dict[str, Observation] = field(default_factory=dict)
    """By site name; empty if pruning must measure for itself."""

    forward_s: dict[int, float] = field(default_factory=dict)
    """Seconds of one forward pass, by block."""
