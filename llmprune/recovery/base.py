"""Base class of recoveries: a pruned checkpoint in, better weights with the same sizes and zeros out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

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

    def write(self, model: Any) -> Tensor:
        """Write a whole model as the pruned one is stored; return its logits on the probe, so rounded."""
        source, where = self.pruned.source, self.pruned.resources
        assert source is not None
        _cast(model, source.size[1])
        self.draft.write_model(model)
        _cast(model, where.dtype)
        logits: Tensor = model(self.pruned.probe().to(where.device), use_cache=False).logits
        return logits


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

    serves: ClassVar[tuple[str, ...]] = ("weights", "units", "blocks")
    """What must have been removed (`Sites.shares`)."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS

    def require(self, pruned: Opened, dense: Opened, samples: int) -> None:
        """Refuse what cannot be recovered, before anything is written; `samples` is the number of windows.

        Raises:
            RequestError: it cannot.
        """

    def recover(self, task: Task) -> Recovered:
        """Write the recovered weights into `task.draft`."""
        raise NotImplementedError


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights, but not the buffers: every load computes those again in full precision."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
