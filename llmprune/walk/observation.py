"""What calibration measures of sites.

Letters used in shapes: I input features, S sampled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmprune import ranks
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

    _tokens: int = 0
    _batches: list[list[Statistic]] = field(default_factory=list)
    """What each batch adds to the small parts of the statistic, while other ranks measure other batches."""

    _completed: bool = False

    def update(self, x: Tensor, dense: Tensor | None = None) -> None:
        """Add the activations `x` [..., I], and those of the same tokens in the dense model."""
        x = x.reshape(-1, x.shape[-1])
        if not len(x):  # no token of this batch reaches the expert
            return
        # Spread over all batches, and not at their starts: a sequence's first token is unlike the others.
        start = (self.every // 2 - self._tokens) % max(self.every, 1)
        self._tokens += len(x)
        if ranks.count() == 1 or self._completed:
            self.statistic.update(x)
        else:
            self._update_parts(x)
        if dense is not None:
            self.statistic.of(CrossGram).compare(dense.reshape(x.shape), x)
        if self.every:
            self.rows.append(x[start :: self.every].clone())  # a view would keep all of `x` in memory

    def _update_parts(self, x: Tensor) -> None:
        """Keep what is small by batches, so that it can be added in the order of the batches of all ranks."""
        small = []
        for part in self.statistic.parts:
            if part.small:
                small.append(type(part)(part.features, x.device))
                small[-1].update(x)
            else:
                part.update(x)
        self._batches.append(small)

    def complete(self) -> None:
        """Account for what the other ranks measured, after the last batch; the first rank's sample counts."""
        if ranks.count() == 1 or self._completed:
            return
        self._completed = True
        parts = self.statistic.parts
        small = [part for part in parts if part.small]
        for batch in ranks.gathered(self._batches) if small else []:
            for part, later in zip(small, batch, strict=True):
                part.merge(later)
        for part in parts:
            if not part.small:
                part.add_up(ranks.add_up)
        self._batches.clear()
        self.statistic.tokens = parts[0].tokens

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
