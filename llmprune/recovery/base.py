"""What a recovery is: a pruned checkpoint in, the same sizes and zeros with better weights out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict
from torch import Tensor

from llmprune.checkpoint.draft import Draft
from llmprune.plugins import OPTIONS
from llmprune.run.job import Job


@dataclass(frozen=True)
class Task:
    """A pruned checkpoint, the dense one it came from, and the text to learn from."""

    pruned: Job
    dense: Job
    tokens: Tensor
    """[N, L]"""

    draft: Draft
    layout: str | None
    """How the pruned checkpoint tells its sizes; None where loose weights went, whose zeros must stay."""


@dataclass(frozen=True)
class Recovered:
    """What the report says of a recovery, and the logits [1, T, V] of the probe to compare a reload with."""

    record: dict[str, Any]
    logits: Tensor | None


@dataclass(frozen=True)
class Recovery:
    """Override `recover`. The fields of a subclass are its options."""

    knows_parts: ClassVar[bool] = True
    """Whether it must know where a family's blocks end their attention and their feed-forward network."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS

    def recover(self, task: Task) -> Recovered:
        """Write the recovered weights into `task.draft`."""
        raise NotImplementedError
