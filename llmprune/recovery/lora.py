"""Low-rank adapters with higher ranks in more important blocks, trained and merged into the weights.

The recovery of CFSP (Wang et al., 2025, arXiv:2409.13199), written from the paper: its code was not released.
The rank of a block's adapters (LoRA, arXiv:2106.09685) depends on the angle between its input and output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from llmprune.allocation.block_influence import BlockInfluence
from llmprune.checkpoint.store import Store
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.recovery.base import Recovered, Task
from llmprune.recovery.base.taught import ADAPTING, Taught
from llmprune.text.windows import HELD_OUT
from llmprune.training.adapters import attach, merge
from llmprune.walk.walk import Walk


@dataclass(frozen=True)
class Lora(Taught):
    """Needs both models in memory. Zeros of a masked or padded checkpoint stay zeros."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Mean rank over the blocks."""

    alpha: Annotated[int, Field(ge=1)] = 2
    """Scale of the adapters, the same for all ranks (alpha / r in the terms of the LoRA paper)."""

    epochs: Annotated[int, Field(ge=1)] = 1
    batch: Annotated[int, Field(ge=1)] = 2
    """Windows per step."""

    def recover(self, task: Task) -> Recovered:
        """Train the adapters, merge them and write the model."""
        count = self.epochs * len(task.tokens) * (HELD_OUT - 1) // HELD_OUT
        text = self.windows(task.tokens, max(1, count))
        student = self.student(task, ADAPTING)
        anatomy = Anatomy(student, LinearLayers())
        ranks = self._ranks(anatomy, task)
        attach(student, anatomy.sites, ranks, self.alpha, task.stored, self.seed)
        lesson = self.lesson(task, torch.cat(text))
        record = self.teach(task, student, lesson, text, min(self.batch, len(text.windows)))
        merge(student)
        return Recovered({"ranks": ranks, **record}, task.write(student))

    def _ranks(self, anatomy: Anatomy, task: Task) -> list[int]:
        """Return the rank of every block's adapters, at least 1."""
        angles = []
        for stage in Walk(Store(anatomy), task.batches, task.pruned.probe()).stages("measuring the blocks"):
            stage.outputs = stage.run()
            angles.append(stage.angle())
        shares = BlockInfluence().weights(torch.tensor(angles, dtype=torch.float64))
        return [max(1, round(self.rank * share)) for share in shares.tolist()]
