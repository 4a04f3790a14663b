"""Try a way to prune: prune every block for a moment, and compare with the dense model on held-out windows.

Two streams of windows meet at each block: the calibration windows, by which it is pruned, and the held-out
ones, which see it pruned. Then the block is as before. So one block is resident at a time, the model is left
as it was, and nothing is written.

Letters used in shapes: B sequences of one batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from llmprune.checkpoint.store import Store
from llmprune.walk.predictions import States, divergences
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk


class Trials:
    """Compares ways to prune on the same windows, with the same dense model.

    Args:
        store: the dense model.
        batches: token ids to calibrate on, each [B, T]; none where blocks are pruned without.
        held_out: token ids to compare on, each [B, T].
        probe: token ids [1, T].
    """

    def __init__(self, store: Store, batches: list[Tensor], held_out: list[Tensor], probe: Tensor) -> None:
        self._store = store
        self._calibrating = len(batches)
        self._walk = Walk(store, [*batches, *held_out], probe)
        self._alone = Walk(store, held_out, probe)
        self._dense: States | None = None

    def divergence(self, prune: Callable[[Stage], None], label: str) -> float:
        """Mean KL(dense || pruned) in nats over the predictions of the held-out windows.

        Args:
            prune: prunes one resident block; the stage that it gets has the calibration windows alone.
            label: names the trial in the progress display.
        """
        dense = self._dense = self._dense or self._ends()
        end: States = []
        for stage in self._walk.stages(label):
            calibrating, held = self._parted(stage)
            with self._store.as_before(stage.sites):
                prune(calibrating)
                end = held.run()
                stage.outputs = [*(calibrating.outputs or calibrating.run()), *end]
        return divergences(self._store, self._walk, dense, {None: end})[None]

    def _ends(self) -> States:
        """What leaves the last block of the dense model."""
        end: States = []
        for stage in self._alone.stages("running the dense model on held-out windows"):
            end = stage.outputs = stage.run()
        return end

    def _parted(self, stage: Stage) -> tuple[Stage, Stage]:
        """The resident block with the calibration windows, and with the held-out ones."""
        anatomy, index, n = self._store.anatomy, stage.index, self._calibrating
        first = Stage(anatomy, index, stage.hidden[:n], stage.calls[:n])
        return first, Stage(anatomy, index, stage.hidden[n:], stage.calls[n:])
