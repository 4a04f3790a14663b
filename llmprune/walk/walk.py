"""One block after another: bring it in, let the caller prune it, and hand its outputs to the next.

Only one block is resident at once; between blocks, the hidden states wait in host memory.

Letters used in shapes: B sequences of one batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmprune.checkpoint.store import Store
from llmprune.model.anatomy import Anatomy
from llmprune.progress import track
from llmprune.walk.pausing import device_of, replaced
from llmprune.walk.stage import Call, Stage


@dataclass
class Journey:
    """What a dry run learnt: the first block's inputs, and what each block gets besides its hidden states."""

    hidden: list[Tensor]
    calls: list[list[Call]]
    returns_tuple: bool


class Walk:
    """Iterate over the blocks in order, each resident; the caller may prune it before asking for the next.

    A walk can be repeated: each call of `stages` begins at the embeddings of the model as it is then.

    What the next block gets are the stage's `outputs`, or the outputs of the block as it is when the caller
    moves on if these are None. The caller runs under `torch.no_grad`.

    Args:
        store: the model to walk, which makes its blocks resident.
        batches: token ids, each [B, T].
        probe: token ids [1, T] that are walked through every block as the caller leaves it.
    """

    def __init__(self, store: Store, batches: list[Tensor], probe: Tensor) -> None:
        self._store, self._anatomy = store, store.anatomy
        self._batches, self._probe = batches, probe
        self._returns_tuple = False
        self._end: Tensor | None = None

    def stages(self, label: str) -> Iterator[Stage]:
        """Every block in order; `label` is what the progress display calls this walk."""
        with self._store.resident(0):
            journey = dry_run(self._anatomy, [*self._batches, self._probe])
        self._returns_tuple = journey.returns_tuple
        hidden, calls = journey.hidden[:-1], journey.calls
        at_probe = journey.hidden[-1:]
        journey.hidden.clear()  # so that a batch is freed once it has passed the first block
        last = len(self._anatomy.blocks) - 1
        for index in track(range(last + 1), label):
            with self._store.resident(index):
                stage = Stage(self._anatomy, index, hidden, calls[index][:-1])
                yield stage
                if index < last:
                    hidden = stage.outputs if stage.outputs is not None else stage.run()
                at_probe = Stage(self._anatomy, index, at_probe, calls[index][-1:]).run()
                calls[index] = []
        self._end = at_probe[0]

    def logits(self, left: Tensor | None = None) -> Tensor:
        """The model's logits [B, T, V] of what has left its last block [B, T, D], or of the walked probe."""
        blocks = self._anatomy.blocks
        end = self._end if left is None else left

        def hand_on(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (x,) if self._returns_tuple else x

        def arrive(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            assert end is not None
            return hand_on(end.to(x.device))

        with replaced(list(blocks), [hand_on] * (len(blocks) - 1) + [arrive]):
            ids = self._probe if left is None else torch.zeros(left.shape[:2], dtype=torch.int64)
            ids = ids.to(device_of(self._anatomy.trunk))
            logits: Tensor = self._anatomy.model(ids, use_cache=False).logits
        return logits


def dry_run(anatomy: Anatomy, batches: list[Tensor]) -> Journey:
    """Run the model with blocks that hand their input on untouched, and note what it passes to each.

    Masks and positions depend on the block (some families alternate local and global attention), so block
    0's must not serve for the others. Hidden states are kept in host memory.
    """
    hidden: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in anatomy.blocks]
    first = anatomy.blocks[0].forward
    returns_tuple: list[bool] = []
    seen: dict[Any, Any] = {}

    def note(index: int) -> Callable[..., Any]:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if index == 0:
                hidden.append(x.cpu())
            kwargs = {k: None if k.startswith("past_key_value") else v for k, v in kwargs.items()}
            if not returns_tuple:  # some families' blocks return a tuple: ask the first one once
                returns_tuple.append(isinstance(first(x, *args, **kwargs), tuple))
            calls[index].append(_interned((args, kwargs), seen))
            return (x,) if returns_tuple[0] else x

        return forward

    with replaced(list(anatomy.blocks), [note(i) for i in range(len(anatomy.blocks))]):
        for ids in batches:
            anatomy.trunk(ids.to(device_of(anatomy.trunk)), use_cache=False)
    return Journey(hidden, calls, returns_tuple[0])


def _interned(value: Any, seen: dict[Any, Any]) -> Any:
    """The same value, with tensors equal to an earlier one replaced by that: batches share their masks."""
    if isinstance(value, Tensor):
        alike = seen.setdefault((value.shape, value.dtype), [])
        for other in alike[-4:]:
            if other is value or torch.equal(other, value):
                return other
        alike.append(value)
        return value
    if isinstance(value, dict):
        return {k: _interned(v, seen) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_interned(v, seen) for v in value)
    return value
