"""Measure what the absence of each block costs: the KL divergence of the model without it to the dense one.

All trials walk together. When a block is resident, the trials that lack an earlier block pass through it, and
one more begins that lacks this one. So no state before a missing block is computed twice, and each block is
brought in once.

Letters used in shapes: B sequences of one batch, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmprune.checkpoint.store import Store
from llmprune.walk.predictions import States, divergences
from llmprune.walk.walk import Walk


class Absence:
    """Compares removals on the same windows, with the same dense model.

    Args:
        store: the dense model.
        batches: token ids, each [B, T].
        probe: token ids [1, T].
    """

    def __init__(self, store: Store, batches: list[Tensor], probe: Tensor) -> None:
        self._store = store
        self._walk = Walk(store, batches, probe)
        self._dense: States | None = None

    def cost(self, gone: set[int], candidates: set[int]) -> dict[int, float]:
        """Mean KL(dense || pruned) in nats, without `gone` and one candidate more, by the candidate.

        Takes half a forward pass per candidate on average, and the head once for each.

        Args:
            gone: blocks that are removed already.
            candidates: blocks to remove in turn.
        """
        trials: dict[int, States] = {}
        end: States = []
        for stage in self._walk.stages("removing blocks in turn"):
            run = stage.without_site if stage.index in gone else stage.run
            for candidate, states in trials.items():  # one by one: all at once would hold all of them twice
                trials[candidate] = run(states)
            if stage.index in candidates:
                trials[stage.index] = stage.without_site(stage.hidden)
            end = stage.outputs = run(stage.hidden)
        if self._dense is None:
            assert not gone, "the first comparison is with the dense model"
            self._dense = end
        return divergences(self._store, self._walk, self._dense, trials)


def few_windows(batches: list[Tensor], tokens: int) -> list[Tensor]:
    """The first windows that hold at least so many tokens, or all, in batches of the same size."""
    windows = torch.cat(batches)
    count = min(len(windows), -(-tokens // windows.shape[1]))
    return list(windows[:count].split(len(batches[0])))
