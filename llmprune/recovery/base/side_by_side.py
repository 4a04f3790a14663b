"""Walk a pruned model and its dense one side by side, with one block of each resident."""

from __future__ import annotations

from collections.abc import Iterator

from llmprune.checkpoint.journal import BlockRecord
from llmprune.errors import JobError
from llmprune.measured import Refit
from llmprune.recovery.base import Recovered, Task
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk


class SideBySide:
    """Takes one forward pass of each model, and resumes after the last whole block.

    Args:
        task: what is to be recovered.
    """

    def __init__(self, task: Task) -> None:
        self._task, self._sites = task, list[Refit]()
        self._walk = Walk(task.pruned.store, task.batches, task.pruned.probe())

    def blocks(self) -> Iterator[tuple[Stage, Stage]]:
        """Every block that is not yet written, and its dense counterpart; `write` it before the next."""
        task, done = self._task, len(self._task.draft.done)
        dense_walk = Walk(task.dense.store, task.dense_batches, task.pruned.probe())
        dense_stages = dense_walk.stages("")
        for stage in self._walk.stages("reconstructing"):
            # Those before it, which the pruned model lacks, pass their outputs on.
            counterpart = task.counterparts[stage.index]
            dense = next(one for one in dense_stages if one.index == counterpart)
            if stage.index < done:
                dense.outputs = dense.run()
                task.pruned.store.restore(stage.sites, task.draft.shard(stage.index))
                self._sites += task.draft.done[stage.index].refits
                continue
            yield stage, dense

    def write(self, stage: Stage, refits: list[Refit]) -> None:
        """Write a block as it is now."""
        store = self._task.pruned.store
        tensors = store.written(store.tensors(stage.index))
        self._task.draft.write_block(stage.index, tensors, BlockRecord(refits=refits))
        self._sites += refits

    def finish(self) -> Recovered:
        """Write what lies outside the blocks.

        Raises:
            JobError: no block was changed; nothing is left of the run.
        """
        pruned = self._task.pruned
        if not self._sites:
            self._task.draft.discard()
            raise JobError(
                f"no block of this {pruned.anatomy.family!r} model adds what its experts put out, so none "
                "can be refitted; use distill"
            )
        self._task.draft.write_rest(pruned.store.rest())
        return Recovered({"sites": self._sites}, self._walk.logits() if pruned.fits_whole() else None)
