"""Base class of recoveries: a pruned checkpoint in, better weights with the same sizes and zeros out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor

from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.opened import Opened
from llmprune.patterns.base import Pattern
from llmprune.patterns.unstructured import Unstructured
from llmprune.plugins import OPTIONS
from llmprune.tensors.statistics import InputNorm, Statistic


@dataclass(frozen=True)
class Task:
    """The input of a recovery: a pruned checkpoint, its dense model, and the text to train on."""

    pruned: Opened
    dense: Opened
    batches: list[Tensor]
    """Token ids, each [B, T]."""

    draft: Draft
    together: bool
    """True if the activations of all batches inside one block fit into memory."""

    counterparts: list[int]
    """The dense block of every pruned block; not all, where whole blocks were removed."""

    layout: str | None
    """How the pruned checkpoint stores its sizes; None for a masked one, whose zeros must stay."""

    @property
    def tokens(self) -> Tensor:
        """The windows [N, L]."""
        return torch.cat(self.batches)


@dataclass(frozen=True)
class Recovered:
    """The record for the report, and the logits [1, T, V] of the probe, to verify a reload against."""

    record: dict[str, Any]
    logits: Tensor | None


@dataclass(frozen=True)
class Recovery:
    """Override `recover`. The fields of a subclass are its options."""

    walks: ClassVar[Pattern] = Unstructured()
    """The pattern that defines the sites of both models."""

    needs: ClassVar[type[Statistic]] = InputNorm
    """A statistic as large as the memory that the recovery holds per site, for the plan."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS

    def recover(self, task: Task) -> Recovered:
        """Write the recovered weights into `task.draft`."""
        raise NotImplementedError
