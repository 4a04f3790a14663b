"""Base class of recoveries: a pruned checkpoint in, better weights out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from llmprune import ranks
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.opened import Opened
from llmprune.model.anatomy import Anatomy
from llmprune.patterns.base import Pattern
from llmprune.patterns.unstructured import Unstructured
from llmprune.plugins import OPTIONS
from llmprune.tensors.statistics import InputNorm, Statistic
from llmprune.vocabulary.shared import Shared


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

    shared: Shared = field(default_factory=Shared)
    """The tokens that both models have."""

    @property
    def dense_batches(self) -> list[Tensor]:
        """The same windows in the dense model's ids."""
        return [self.shared.dense_ids(batch) for batch in self.batches]

    @property
    def tokens(self) -> Tensor:
        """The windows [N, L]."""
        return torch.cat(self.batches)

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the checkpoint."""
        assert self.pruned.source is not None
        return self.pruned.source.size[1]

    def write(self, model: Any) -> Tensor:
        """Write a whole model as the pruned one is stored; return its logits on the probe, so rounded."""
        where = self.pruned.resources
        _cast(model, self.stored)
        ranks.from_first(lambda: self.draft.write_model(model))
        _cast(model, where.dtype)
        logits: Tensor = model(self.pruned.probe().to(where.device), use_cache=False).logits
        return logits


class Removed(NamedTuple):
    """What a recovery has removed: the share and the pattern, and by site how many weights are zero."""

    share: float
    pattern: Pattern
    zeros: dict[str, int]


@dataclass(frozen=True)
class Recovered:
    """The record for the report, and the logits [1, T, V] of the probe, to verify a reload against."""

    record: dict[str, Any]
    logits: Tensor | None
    removed: Removed | None = None
    """What is gone now, where more went."""


@dataclass(frozen=True)
class Recovery:
    """Override `recover`. The fields of a subclass are its options."""

    walks: ClassVar[Pattern] = Unstructured()
    """The pattern that defines the sites of both models."""

    needs: ClassVar[type[Statistic]] = InputNorm
    """A statistic as large as the memory that the recovery holds per site, for the plan."""

    serves: ClassVar[tuple[str, ...]] = ("weights", "units", "blocks")
    """What must have been removed (`Sites.shares`)."""

    streams: ClassVar[bool] = True
    """Whether it walks both models, with one block of each resident; else it holds them whole."""

    @property
    def removes(self) -> bool:
        """Whether it removes more."""
        return False

    @property
    def spreads(self) -> bool:
        """Whether several processes can share it."""
        return False

    translates: ClassVar[bool] = False
    """Whether it serves a model whose vocabulary was cut (`Task.shared`)."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS

    def walked(self, anatomy: Anatomy) -> tuple[Pattern, type[Statistic]]:
        """`walks` and `needs` for a model, where they depend on it."""
        return self.walks, self.needs

    def samples(self, length: int) -> int | None:
        """Windows of `length` tokens to draw unless asked otherwise; None for as many as pruning drew."""
        return None

    def require_after(self, pattern: Pattern, sparsity: float, allocation: str) -> None:
        """Refuse what a recipe prunes by before, before that is done; the allocation by its name.

        Raises:
            RequestError: it cannot be recovered so.
        """

    def require(self, pruned: Opened, dense: Opened, samples: int, length: int) -> None:
        """Refuse what cannot be recovered, before anything is written.

        Args:
            pruned: what is to be recovered.
            dense: what it was pruned from.
            samples: windows of the text.
            length: of a window.

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
