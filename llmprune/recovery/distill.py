"""Train the pruned model towards the dense model's predictions (knowledge distillation, arXiv:1503.02531; for
pruned language models Minitron, arXiv:2407.14679: temperature 1, and no loss of the text's own).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from llmprune import plugins, ranks
from llmprune.checkpoint.opened import Opened
from llmprune.errors import RequestError
from llmprune.methods.base import Method, PruningMethod
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.model.sites.linear import LinearLayers
from llmprune.patterns.base import Pattern
from llmprune.progress import say
from llmprune.recovery.base import Recovered, Removed, Task
from llmprune.recovery.base.taught import ADAPTING, TRAINING, Taught, held_of
from llmprune.recovery.refine.originals import pattern_of, report_of, require_mask
from llmprune.text.windows import Split
from llmprune.training import sharded
from llmprune.training.adapters import attach, merge
from llmprune.training.gradual import Gradual, Masks, Schedule, at, gone
from llmprune.training.teacher import Lesson

SCALE = 2.0  # of the adapters' products
RATE_OF_A_NAT, MOST = 1e-3, 2e-3  # relative to each parameter's scale
TEXT_RATE = 3e-4  # the same, where the loss tells nothing of the distance to the dense model
SEEN = 8  # windows that masks are chosen by
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

    batch_tokens: Tokens = 512
    """Of one step, which takes one window at least."""

    relative_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of AdamW over the root mean square of each parameter, which differs by more than ten times
    between models (Adafactor, arXiv:1804.04235, section 8); by default 0.001 for each nat of held-out loss at
    the start, at most 0.002. A `learning_rate` goes before it."""

    adapters: Annotated[int, Field(ge=1)] | None = None
    """Rank of adapters that train in place of the weights."""

    schedule: Schedule | None = None
    """Removes more single weights on the way, by the method that pruned."""

    soup: Annotated[int, Field(ge=1)] = 1
    """Students to train, each on all tokens in an order of its own; their average is written, or the best
    of them where that is better (arXiv:2306.16788)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < self.batch_tokens:
            raise RequestError(
                "recovery.tokens",
                f"{self.tokens} were asked, and one step takes {self.batch_tokens}; ask for more, or lower "
                "batch_tokens",
            )
        if self.schedule and (self.adapters or self.soup > 1):
            other = "adapters" if self.adapters else "soup"
            raise RequestError(
                "recovery.schedule",
                f"masks would change under {other}, which needs those of the start; leave one of them out",
            )

    def require(self, pruned: Opened, dense: Opened, samples: int, length: int) -> None:
        """Refuse a schedule for what did not lose single weights alone, or lost as many; and sharding.

        Raises:
            RequestError: it says which.
        """
        super().require(pruned, dense, samples, length)
        sharded.require()
        if self.at_once(length) % ranks.count():
            raise RequestError(
                "recovery.batch_tokens",
                f"a step has {self.at_once(length)} windows of {length} tokens, which {ranks.count()} "
                "processes cannot share; make it a multiple",
            )
        if self.schedule:
            require_mask(pruned, dense, "a schedule removes")
            earlier = report_of(pruned)
            start, allocation = earlier.totals["sparsity"], str(earlier.recipe["allocation"]["name"])
            self.schedule.require(pattern_of(pruned), start, allocation)
            self.schedule.shares(start, self.steps(length))

    def rate(self, start: Callable[[], float]) -> tuple[float, bool]:
        """Unless one is given, relative for weights, and the higher the farther from the dense model."""
        if self.learning_rate or self.adapters:
            return super().rate(start)
        if self.relative_rate:
            return self.relative_rate, True
        return (min(RATE_OF_A_NAT * start(), MOST) if self.loss == "teacher" else TEXT_RATE), True

    @property
    def spreads(self) -> bool:
        """With a teacher in memory and masks that stay."""
        return self.teacher == "resident" and self.schedule is None

    @property
    def removes(self) -> bool:
        """By a schedule."""
        return self.schedule is not None

    def require_after(self, pattern: Pattern, sparsity: float, allocation: str) -> None:
        """Refuse a schedule that does not begin where pruning ends."""
        if self.schedule:
            self.schedule.require(pattern, sparsity, allocation)

    def at_once(self, length: int) -> int:
        """Windows of one step."""
        return max(1, self.batch_tokens // length)

    def steps(self, length: int) -> int:
        """Of the training, on windows of `length` tokens."""
        return max(1, self.tokens // length) // self.at_once(length)

    def samples(self, length: int) -> int:
        """Windows of `length` tokens to draw: those to train on, and those held out."""
        training = -(-self.tokens // length)
        return training + held_of(training)

    def recover(self, task: Task) -> Recovered:
        """Train, and write the best state."""
        members = [replace(self, seed=self.seed + number) for number in range(self.soup)]
        count = max(1, self.tokens // task.tokens.shape[1])
        texts = [member.windows(task.tokens, count) for member in members]
        held_out = texts[0].held_out
        lesson = self.lesson(task, torch.cat([held_out, *(text.windows for text in texts)]))
        trained = [member.trained(task, lesson, text) for member, text in zip(members, texts, strict=True)]
        if self.soup == 1:
            student, record = trained[0]
            logits = task.write(student)
            return Recovered(record, logits, self._removed(task, student))
        return self._average(task, trained, lesson, held_out)

    def trained(self, task: Task, lesson: Lesson, text: Split) -> tuple[Any, dict[str, Any]]:
        """One student in its best state, and its record."""
        others = self.soup - 1 + (self.schedule is not None)  # other members, or the start of a schedule
        student = self.student(task, others + (ADAPTING if self.adapters else TRAINING))
        if self.adapters:
            ranks = [self.adapters] * len(Anatomy(student, LinearLayers()).blocks)
            attach(student, _sites(student), ranks, SCALE, task.stored, self.seed)
        length = text.windows.shape[1]
        gradual = self._gradual(task, student, lesson, text, self.steps(length))
        record = self.teach(task, student, lesson, text, self.at_once(length), gradual)
        merge(student)
        return student, record

    def _gradual(self, task: Task, student: Any, lesson: Lesson, text: Split, steps: int) -> Gradual | None:
        """What prunes further while the student trains, and what as much removed at once is worth."""
        from llmprune.training.trainer import judged

        if self.schedule is None:
            return None
        earlier = report_of(task.pruned)
        method: PruningMethod = plugins.build("method", "llmprune.methods", earlier.recipe["method"], Method)
        pattern, seen = pattern_of(task.pruned), text.windows[:SEEN]
        masks = Masks(student, _sites(student), method, pattern, seen, lesson)
        with masks.tried(self.schedule.to):
            one_shot = judged(student, lesson, text.held_out, self.computes_in(task))
        say(f"held-out loss {one_shot:.4f} with {self.schedule.to:.0%} removed at once")
        return Gradual(masks, self.schedule, earlier.totals["sparsity"], steps, one_shot)

    def _removed(self, task: Task, student: Any) -> Removed | None:
        """What a schedule has removed."""
        if self.schedule is None:
            return None
        pattern = at(pattern_of(task.pruned), self.schedule.to)
        return Removed(self.schedule.to, pattern, gone(_sites(student)))

    def _average(
        self, task: Task, trained: list[tuple[Any, dict[str, Any]]], lesson: Lesson, held_out: Tensor
    ) -> Recovered:
        """Write the mean of the students, or the best of them."""
        from llmprune.training.trainer import judged

        losses = [min(look["loss"] for look in record["held_out"]) for _, record in trained]
        best, record = trained[losses.index(min(losses))]
        mean = copy.deepcopy(best)
        states = [dict(student.named_parameters()) for student, _ in trained]
        for name, parameter in mean.named_parameters():
            total = torch.stack([state[name].detach() for state in states]).mean(0)
            parameter.data = total.to(task.stored).to(parameter.dtype)
        loss = judged(mean, lesson, held_out, self.computes_in(task))
        say(f"held-out loss {loss:.4f}; of the members {', '.join(f'{own:.4f}' for own in losses)}")
        taken = mean if loss < min(losses) else best
        found = {"member_losses": losses, "average_loss": loss}
        return Recovered({**record, **found}, task.write(taken))


def _sites(student: Any) -> list[Site]:
    """The linear layers of its blocks."""
    return Anatomy(student, LinearLayers()).sites
