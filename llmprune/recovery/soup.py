"""Average recovered checkpoints that have one mask (Sparse Model Soups, Zimmer et al., arXiv:2306.16788).

What was recovered from one pruned model with other seeds or texts has zeros in the same places, so that the
mean of the weights keeps them, and is often better than each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from llmprune.checkpoint import source
from llmprune.checkpoint.opened import Opened
from llmprune.errors import JobError, RequestError
from llmprune.loading import load
from llmprune.progress import say
from llmprune.recovery.base import Recovered, Recovery, Task
from llmprune.training.teacher import Teacher

State = dict[str, Tensor]
COPIES = 5  # models in float32: student, teacher, a sum, the member that is read, activations


@dataclass(frozen=True)
class Soup(Recovery):
    """Reads the text to compare with the dense model; an average no better than the start is refused."""

    streams: ClassVar = False
    translates: ClassVar = True

    members: tuple[str, ...] = ()
    """Folders of the recovered checkpoints."""

    choose: Literal["uniform", "greedy"] = "uniform"
    """All of them; or the best, and then each that makes the average better."""

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise RequestError(
                "recovery.members", f"{len(self.members)} were named; name two or more recovered folders"
            )

    def require(self, pruned: Opened, dense: Opened, samples: int, length: int) -> None:
        """Refuse members of other shapes or with other zeros.

        Raises:
            RequestError: it names the first tensor that differs.
        """
        assert pruned.source is not None
        for member in self.members:
            theirs = source.find(member, trust_remote_code=pruned.trust_remote_code).tensors
            for key, stored in pruned.source.tensors.items():
                if key not in theirs or not _alike(stored.read(), theirs[key].read()):
                    raise RequestError(
                        "recovery.members",
                        f"{member} differs from {pruned.name} in the zeros or the shape of {key}; average "
                        "only what was recovered from it",
                    )

    def recover(self, task: Task) -> Recovered:
        """Average the members that are chosen, and write the result."""
        if not task.pruned.fits_whole(COPIES, torch.float32):
            raise JobError(
                f"averaging takes {COPIES} times the model in float32, and memory does not hold that"
            )
        student, teacher = task.pruned.loaded(torch.float32), Teacher(task.dense.loaded(), shared=task.shared)

        def loss(state: State) -> float:
            student.load_state_dict(state)
            return sum(float(teacher(ids, student(ids))) * len(ids) for ids in batches) / len(task.tokens)

        batches = [ids.to(task.pruned.resources.device) for ids in task.batches]
        start = loss(student.state_dict())
        losses = [loss(_state(member)) for member in self.members]
        order = sorted(range(len(losses)), key=lambda number: losses[number])
        chosen = order if self.choose == "uniform" else order[:1]
        best = loss(self._mean(chosen))
        for number in order[1:] if self.choose == "greedy" else ():
            if (found := loss(self._mean([*chosen, number]))) < best:
                chosen, best = [*chosen, number], found
        say(f"held-out loss {best:.4f}; of the members {', '.join(f'{found:.4f}' for found in losses)}")
        if best >= start:
            task.draft.discard()
            raise JobError(f"the average is no better than the start ({best:.4f} and {start:.4f} nats)")
        student.load_state_dict(self._mean(chosen))
        averaged = [self.members[number] for number in sorted(chosen)]
        record = {"averaged": averaged, "loss_before": start, "member_losses": losses, "loss_after": best}
        return Recovered(record, task.write(student))

    def _mean(self, chosen: list[int]) -> State:
        """The mean weights of some members, read one after the other."""
        total: State = {}
        for number in chosen:
            for key, tensor in _state(self.members[number]).items():
                total[key] = total[key] + tensor if key in total else tensor
        return {key: tensor / len(chosen) for key, tensor in total.items()}


def _state(member: str) -> State:
    model, _ = load(member, dtype="float32", kernels="none", device="cpu")
    state: Any = model.state_dict()
    return dict(state)


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether shapes agree, and what is zero in one matrix is zero in the other."""
    if ours.shape != theirs.shape:
        return False
    return ours.ndim < 2 or bool((theirs[ours == 0] == 0).all())
