"""Measure what the absence of each block costs: the KL divergence of the model without it to the dense one.

All trials walk together. When a block is resident, the trials that lack an earlier block pass through it, and
one more begins that lacks this one. So no state before a missing block is computed twice, and each block is
brought in once.

Letters used in shapes: B sequences of one batch, T tokens, D hidden size, R predictions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmprune.checkpoint.store import Store
from llmprune.tensors import ops
from llmprune.tensors.agreement import divergence
from llmprune.walk.walk import Walk

States = list[Tensor]  # hidden states [B, T, D], one tensor per batch


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
        return self._compared(self._dense, trials)

    def _compared(self, dense: States, trials: dict[int, States]) -> dict[int, float]:
        """Mean divergence of every trial; the logits of a few rows of all trials are held at a time."""
        rows = max(1, ops.CHUNK // self._store.anatomy.vocabulary)
        found, predictions = dict.fromkeys(trials, 0.0), 0
        parts = {key: _predicting(states, rows) for key, states in trials.items()}
        with self._store.head():
            for number, whole in enumerate(_predicting(dense, rows)):
                predictions += len(whole)
                expected = self._predicted(whole)
                for key, of_trial in parts.items():
                    # Top-1 agreement, which takes longer than all else here, decides nothing.
                    found[key] += divergence(expected, self._predicted(of_trial[number]))
        return {key: total / predictions for key, total in found.items()}

    def _predicted(self, states: Tensor) -> Tensor:
        """Log-probabilities, float32 [R, V], of hidden states [R, D] that left the last block."""
        return self._walk.logits(states[:, None])[:, 0].float().log_softmax(-1)


def _predicting(batches: States, rows: int) -> list[Tensor]:
    """Hidden states [B, T, D] but those of last tokens, which predict nothing, in parts [R, D]."""
    return [part for states in batches for part in states[:, :-1].flatten(0, 1).split(rows)]


def few_windows(batches: list[Tensor], tokens: int) -> list[Tensor]:
    """The first windows that hold at least so many tokens, or all, in batches of the same size."""
    windows = torch.cat(batches)
    count = min(len(windows), -(-tokens // windows.shape[1]))
    return list(windows[:count].split(len(batches[0])))
