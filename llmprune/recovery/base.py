"""What a recovery is: a pruned checkpoint in, the same sizes and zeros with better weights out."""

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
    """A pruned checkpoint, the dense one it came from, and the text to learn from."""

    pruned: Opened
    dense: Opened
    batches: list[Tensor]
    """Token ids, each [B, T]."""

    draft: Draft
    together: bool
    """Whether all batches fit into memory inside one block."""

    layout: str | None
    """How the pruned checkpoint stores its sizes; None where masks left zeros, which must stay."""

    @property
    def tokens(self) -> Tensor:
        """The windows [N, L]."""
        return torch.cat(self.batches)


@dataclass(frozen=True)
class Recovered:
    """What the report says of a recovery, and the logits [1, T, V] of the probe to compare a reload with."""

    record: dict[str, Any]
    logits: Tensor | None


@dataclass(frozen=True)
class Recovery:
    """Override `recover`. The fields of a subclass are its options."""

    walks: ClassVar[Pattern] = Unstructured()
    """The pattern whose sites both models are walked by."""

    needs: ClassVar[type[Statistic]] = InputNorm
    """What is as large as all that is held of a site, for the plan."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS

    def recover(self, task: Task) -> Recovered:
        """Write the recovered weights into `task.draft`."""
        raise NotImplementedError
