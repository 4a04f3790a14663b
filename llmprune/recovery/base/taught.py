"""Base class of recoveries that train with gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from llmprune import ranks
from llmprune.checkpoint import devices
from llmprune.checkpoint.opened import Opened
from llmprune.errors import JobError, RequestError
from llmprune.progress import say
from llmprune.recovery.base import Recovery, Task
from llmprune.text.windows import HELD_OUT, Split, batched, sharing
from llmprune.training import sharded
from llmprune.training.cached import Cached, keep
from llmprune.training.gradual import Gradual
from llmprune.training.keep_zeros import KeepZeros
from llmprune.training.teacher import Lesson, Teacher, Text

JUDGING = 20  # windows to train on for each that is held out: what is held out is read ten times
TRAINING = 7  # models in float32: student, gradient, two of AdamW's, the best state, teacher, activations
ADAPTING = 4  # student, teacher, what adapters and their optimiser take, activations
WHOLE = 2  # student and teacher, before processes share them
ADAPTERS_RATE = 2e-4


@dataclass(frozen=True)
class Taught(Recovery):
    """Base class of those that train with gradients; override `recover`, and call `teach`.

    What trains keeps its zeros. Of the states on the way, the one of the lowest loss on held-out windows is
    kept, and a training that ends no better than it began is refused.
    """

    serves: ClassVar = ("weights", "units", "experts", "blocks")

    streams: ClassVar = False
    translates: ClassVar = True

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of AdamW; by default 2e-4 for adapters, and for weights what `relative_rate` makes of it."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0

    loss: Literal["teacher", "text"] = "teacher"
    """KL to the dense model, or the cross-entropy of the text."""

    hidden: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distance between hidden states behind the blocks that stay (arXiv:2404.11098)."""

    teacher: Literal["resident", "cached"] = "resident"
    """`cached` streams the dense model once, block by block, and keeps its predictions on disk."""

    top: Annotated[int, Field(ge=1)] = 512
    """Tokens of each prediction that a cached teacher keeps; all others count as one."""

    products: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products: `auto` is bfloat16 where the device computes in it."""

    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Where transformers' Trainer logs to."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def __post_init__(self) -> None:
        if self.hidden and (self.teacher == "cached" or self.loss == "text"):
            raise RequestError(
                "recovery.hidden",
                f"{self.hidden:g} was asked, and that needs a resident teacher; leave it out",
            )

    def rate(self, start: Callable[[], float]) -> tuple[float, bool]:
        """The peak rate, and whether it is a share of each parameter's scale.

        Args:
            start: judges the model before training: held-out loss in nats.
        """
        return self.learning_rate or ADAPTERS_RATE, False

    def require(self, pruned: Opened, dense: Opened, samples: int, length: int) -> None:
        """Refuse a text of one window, and a log whose package is not installed.

        Raises:
            RequestError: it says which.
        """
        if self.report_to != "none" and find_spec(self.report_to) is None:
            raise RequestError(
                "recovery.report_to",
                f"{self.report_to} was asked, and is not installed; run pip install {self.report_to}",
            )
        if samples < 2:
            raise RequestError(
                "calibration.samples",
                f"{samples} was asked, and training holds windows out to choose its best state; ask for 2 "
                "or more",
            )

    def student(self, task: Task, copies: float) -> Any:
        """The pruned model in float32; FSDP2 will leave each process its share of the copies.

        Raises:
            JobError: that many copies of it do not fit into memory, or those that wait into the host's.
        """
        if sharded.asked():
            sharded.require_host(task.pruned.anatomy.parameters)
            copies = max(WHOLE, copies / ranks.count())
        if not task.pruned.fits_whole(copies, torch.float32):
            raise JobError(
                f"training takes {copies:g} times the model in float32, and memory does not hold that; use "
                "reconstruct, which needs one block at a time"
            )
        return task.pruned.loaded(torch.float32)

    def windows(self, tokens: Tensor, count: int) -> Split:
        """`count` windows in the order of training, and held-out ones that share no text with them.

        Raises:
            RequestError: all share text with a held-out one.
        """
        held = max(1, min(held_of(count), len(tokens) // HELD_OUT))
        held_out, rest = tokens[:held], tokens[held:]
        rest = rest[~sharing(rest, held_out)]
        if not len(rest):
            raise RequestError(
                "calibration", "every window shares text with those that are held out; give a longer text"
            )
        lots = torch.Generator().manual_seed(self.seed)
        passes = [torch.randperm(len(rest), generator=lots) for _ in range(-(-count // len(rest)))]
        return Split(rest[torch.cat(passes)[:count]], held_out)

    def teach(
        self,
        task: Task,
        student: Any,
        lesson: Lesson,
        text: Split,
        at_once: int,
        gradual: Gradual | None = None,
    ) -> dict[str, Any]:
        """Train what requires a gradient, leave the student in its best state, and return the record.

        Args:
            task: of the recovery.
            student: in float32.
            lesson: its loss.
            text: in the order of training, and held out.
            at_once: windows of one step.
            gradual: prunes further on the way.

        Raises:
            JobError: the training failed, or helped nothing.
        """
        from llmprune.training.trainer import Course, judged, train

        def before() -> float:
            return judged(student, lesson, text.held_out, self.computes_in(task))

        # Processes that round in their own ways train at one rate.
        rate, relative = self.rate(lambda: gradual.one_shot if gradual else ranks.from_first(before))
        say(f"training at a peak rate of {rate:.2g}{' of the scale of each parameter' if relative else ''}")
        course = Course(
            rate=rate,
            relative=relative,
            windows=at_once,
            decay=self.weight_decay,
            seed=self.seed,
            bfloat16=self.computes_in(task) == torch.bfloat16,
            stored=task.stored,
            report_to=self.report_to,
            zeros=gradual or KeepZeros(),
            settles=gradual.settles if gradual else 0,
        )
        scratch = task.draft.scratch / str(self.seed)
        done = train(student, lesson, *text, course, scratch)
        start, name = (gradual.one_shot, "as much removed at once") if gradual else (done.start, "the start")
        if done.end >= start:
            task.draft.discard()
            raise JobError(
                f"no state on the way was better than {name} ({start:.4f} nats on held-out windows, "
                f"{done.end:.4f} at best); lower {'relative_rate' if relative else 'learning_rate'} from "
                f"{rate:.2g}, or give another text"
            )
        return {
            "trained_tokens": len(done.losses) * at_once * text.windows.shape[1],
            "rate": rate,
            "losses": done.losses,
            "held_out": [{"step": step, "loss": loss} for step, loss in done.held_out],
            "computed_in": str(self.computes_in(task)).removeprefix("torch."),
            **({"one_shot_loss": gradual.one_shot} if gradual else {}),
        }

    def lesson(self, task: Task, windows: Tensor) -> Lesson:
        """The loss on these windows [N, L], with the dense model in memory or what it predicts on disk."""
        if self.loss == "text":
            return Text()
        if self.teacher == "resident":
            return Teacher(
                task.dense.loaded(self.computes_in(task)), self.hidden, task.counterparts, task.shared
            )
        file = task.draft.scratch / "teacher.safetensors"
        distinct = batched(windows.unique(dim=0), len(task.batches[0]))
        keep(task.dense.store, distinct, self.top, file, task.shared)
        return Cached(file, task.shared)

    def computes_in(self, task: Task) -> torch.dtype:
        """The precision of matrix products."""
        if self.products != "auto":
            return torch.bfloat16 if self.products == "bfloat16" else torch.float32
        able = devices.computes_bfloat16(task.pruned.resources.device)
        return torch.bfloat16 if able else torch.float32


def held_of(training: int) -> int:
    """How many windows to hold out of a text, given how many train."""
    return max(2, training // JUDGING)
