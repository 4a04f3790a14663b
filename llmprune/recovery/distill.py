"""Train the pruned model towards the dense model's predictions (knowledge distillation, arXiv:1503.02531; for
pruned language models Minitron, arXiv:2407.14679: temperature 1, and no loss of the text's own).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field

from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.recovery.base import ADAPTING, TRAINING, Recovered, Task, Taught, held_of
from llmprune.training.adapters import attach, merge

SCALE = 2.0  # of the adapters' products
UNITS = {"k": 1_000, "M": 1_000_000}


def counted(value: object) -> object:
    """A number of tokens, such as `400k` or `1M`."""
    if isinstance(value, str) and value[-1:] in UNITS and value[:-1].replace(".", "", 1).isdigit():
        return round(float(value[:-1]) * UNITS[value[-1]])
    return value


Tokens = Annotated[int, BeforeValidator(counted), Field(ge=1)]


@dataclass(frozen=True)
class Distill(Taught):
    """All weights train under their masks, or adapters do. Needs both models in memory."""

    tokens: Tokens = 400_000
    """To train on: fresh windows of the text, unless a number of samples is asked, which then repeat."""

    batch_tokens: Tokens = 2048
    """Of one step."""

    adapters: Annotated[int, Field(ge=1)] | None = None
    """Rank of adapters that train in place of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < self.batch_tokens:
            raise RequestError(
                "recovery.tokens",
                f"{self.tokens} were asked, and one step takes {self.batch_tokens}; ask for more, or lower "
                "batch_tokens",
            )

    def samples(self, length: int) -> int:
        """Windows of `length` tokens to draw: those to train on, and those held out."""
        training = -(-self.tokens // length)
        return training + held_of(training)

    def recover(self, task: Task) -> Recovered:
        """Train, and write the best state."""
        length = task.tokens.shape[1]
        windows, held_out = self.windows(task.tokens, max(1, self.tokens // length))
        student = self.student(task, ADAPTING if self.adapters else TRAINING)
        if self.adapters:
            anatomy = Anatomy(student, LinearLayers())
            attach(
                student, anatomy.sites, [self.adapters] * len(anatomy.blocks), SCALE, task.stored, self.seed
            )
        record = self.teach(task, student, windows, held_out, max(1, self.batch_tokens // length))
        merge(student)
        return Recovered(record, task.write(student))
