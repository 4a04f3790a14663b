"""Walk the blocks in order: load one, let the caller prune it, and pass its outputs to the next.

Only one block is resident at a time; between blocks, the hidden states stay in host memory.

Letters used in shapes: B sequences of one batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmprune.checkpoint.store import Store
from llmprune.errors import JobError
from llmprune.model.anatomy import Anatomy
from llmprune.progress import track
from llmprune.walk.expert_loop import looped
from llmprune.walk.pausing import device_of, replaced
from llmprune.walk.scores import Scores
from llmprune.walk.stage import Call, Stage

Known = dict[tuple[torch.Size, torch.dtype], list[Tensor]]  # tensors by shape and dtype


@dataclass
class DryRun:
    """The result of `dry_run`: the inputs of the first block, and the other arguments of every block."""

    hidden: list[Tensor]
    calls: list[list[Call]]
    returned: Callable[[Tensor], object]
    """What a block returns, given its output hidden states: these alone, or in a tuple or list with more."""


class Walk:
    """Iterate over the resident blocks in order; the caller may prune one before it asks for the next.

    A walk can be repeated: each call of `stages` starts at the embeddings of the model as it is then.

    The next block gets the stage's `outputs`. If they are None, the block runs again when the caller asks for
    the next one, as it is then. The caller must run under `torch.no_grad`.

    Args:
        store: the model to walk; it makes blocks resident.
        batches: token ids, each [B, T].
        probe: token ids [1, T]; they pass through every block after the caller has pruned it.
        scores: what was measured of the dense model before, instead of batches.
    """

    def __init__(
        self, store: Store, batches: list[Tensor], probe: Tensor, scores: Scores | None = None
    ) -> None:
        self._store, self._anatomy = store, store.anatomy
        self._stage = scores.stage if scores else Stage
        self.batches, self._probe = batches, probe
        self._returned: Callable[[Tensor], object] = _alone
        self._end: Tensor | None = None
        self._ends: list[Tensor] = []

    def stages(self, label: str, *, ends: bool = False) -> Iterator[Stage]:
        """Yield every block in order.

        Args:
            label: names this walk in the progress display.
            ends: whether `states` will be asked for.
        """
        with self._store.resident(0):  # the dry run calls the first block once
            dry = dry_run(self._anatomy, [*self.batches, self._probe])
        self._returned = dry.returned
        hidden, calls = dry.hidden[:-1], dry.calls
        at_probe = dry.hidden[-1:]
        dry.hidden.clear()  # a second reference: without this, no batch is freed after the first block
        last = len(self._anatomy.blocks) - 1
        for index in track(range(last + 1), label):
            with self._store.resident(index):
                with looped(self._anatomy.blocks[index]):
                    stage = self._stage(self._anatomy, index, hidden, calls[index][:-1])
                    yield stage
                    hidden = stage.passed_on() if index < last or ends else hidden
                # The probe takes the way that it takes once the pruned model is loaded.
                at_probe = Stage(self._anatomy, index, at_probe, calls[index][-1:]).run()
                calls[index] = []  # frees the masks and positions of this block
        self._end = at_probe[0]
        self._ends = hidden if ends else []

    def states(self) -> list[Tensor]:
        """What the trunk puts out for every batch [B, T, D], behind its last norm; once, after a walk."""
        states, self._ends = self._ends, []
        for batch, end in enumerate(states):
            states[batch] = self._ended(self._anatomy.trunk, end)[0].to(end.device)
        return states

    def logits(self, outputs: Tensor | None = None) -> Tensor:
        """The logits [B, T, V] that the model computes from the outputs [B, T, D] of its last block.

        Args:
            outputs: of the last block; None for those of the probe, after a walk.
        """
        end = self._end if outputs is None else outputs
        assert end is not None, "the probe is walked first"
        with self._store.head():
            logits: Tensor = self._ended(self._anatomy.model, end).logits
        return logits

    def _ended(self, model: nn.Module, end: Tensor) -> Any:
        """What a model, or its trunk, computes from the outputs [B, T, D] of its last block."""
        blocks = self._anatomy.blocks

        def pass_through(*args: object, **kwargs: object) -> object:
            return self._returned(_hidden(self._anatomy, args, kwargs)[0])

        def substitute(*args: object, **kwargs: object) -> object:
            return self._returned(end.to(_hidden(self._anatomy, args, kwargs)[0].device))

        # The whole model runs, so that its own code applies the last norm, the head and any scaling.
        forwards = [pass_through] * (len(blocks) - 1) + [substitute]
        with replaced(list(blocks), forwards):
            # The ids do not matter: what the blocks get is replaced by `end`.
            ids = torch.zeros(end.shape[:2], dtype=torch.int64, device=device_of(self._anatomy.trunk))
            return model(ids, use_cache=False)


def dry_run(anatomy: Anatomy, batches: list[Tensor]) -> DryRun:
    """Run the model with blocks that return their input, and record the arguments that each block gets.

    Masks and positions depend on the block (some families alternate local and global attention), so those of
    block 0 must not be used for the others. Hidden states are kept in host memory.

    Raises:
        JobError: the model does more between its blocks than to hand on the hidden states.
    """
    hidden: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in anatomy.blocks]
    first = anatomy.blocks[0].forward
    outputs: list[object] = []
    passed = torch.empty(0)  # the hidden states that the last block returned
    known: Known = {}

    def recording(index: int) -> Callable[..., object]:
        def forward(*args: object, **kwargs: object) -> object:
            nonlocal passed
            x, rest, named = _hidden(anatomy, args, kwargs)
            if index == 0:
                hidden.append(x.cpu())
            # No cache: a block may run many times, and each run would add its tokens again.
            named = {k: None if k.startswith("past_key_value") else v for k, v in named.items()}
            if not outputs:  # some families' blocks return a tuple: ask the first one once
                outputs.append(first(x, *rest, **named))
            elif index:
                _require_alone(anatomy, x, passed, outputs[0], (*rest, *named.values()))
            passed = x
            shared_args = tuple(_interned(value, known) for value in rest)
            calls[index].append((shared_args, {k: _interned(v, known) for k, v in named.items()}))
            return _as(outputs[0])(x)

        return forward

    with replaced(list(anatomy.blocks), [recording(i) for i in range(len(anatomy.blocks))]):
        for ids in batches:
            anatomy.trunk(ids.to(device_of(anatomy.trunk)), use_cache=False)
    for index, seen in enumerate(calls):
        if len(seen) != len(batches):
            raise _not_followed(anatomy, f"run block {index} {len(seen) / len(batches):g} times, not once")
    return DryRun(hidden, calls, _as(outputs[0]))


def _hidden(
    anatomy: Anatomy, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[Tensor, tuple[object, ...], dict[str, object]]:
    """The hidden states that a block is called with, and its other arguments."""
    if args:
        x, *rest = args
    else:
        _, name, *_ = inspect.signature(type(anatomy.blocks[0]).forward).parameters
        kwargs = dict(kwargs)
        x, rest = kwargs.pop(name, None), []
    if not isinstance(x, Tensor):
        raise _not_followed(anatomy, "call their blocks with something else than hidden states")
    return x, tuple(rest), kwargs


def _require_alone(
    anatomy: Anatomy, x: Tensor, passed: Tensor, output: object, given: tuple[object, ...]
) -> None:
    """Refuse a model in which a block gets something else than the hidden states of the one before.

    Args:
        anatomy: of the model.
        x: the hidden states that a block gets.
        passed: those that the block before it put out.
        output: of a block.
        given: the other arguments of the block.
    """
    if x is not passed and not torch.allclose(x.cpu(), passed.cpu(), rtol=0, atol=0, equal_nan=True):
        raise _not_followed(anatomy, "change the hidden states between their blocks")
    beside = output[1:] if isinstance(output, tuple | list) else ()
    if any(one is other for one in beside for other in given if isinstance(one, Tensor)):
        raise _not_followed(anatomy, "hand on more than hidden states from block to block")


def _alone(x: Tensor) -> object:
    return x


def _as(output: object) -> Callable[[Tensor], object]:
    """What turns hidden states into what a block returns, given one of its outputs."""
    if not isinstance(output, tuple | list):
        return _alone
    if isinstance(output, list):
        return lambda x: [x, *output[1:]]
    named = getattr(type(output), "_make", tuple)  # of a named tuple, whose parts are read by their names
    return lambda x: named((x, *output[1:]))


def _not_followed(anatomy: Anatomy, what: str) -> JobError:
    return JobError(
        f"{anatomy.family!r} models {what}, which pruning block by block cannot follow; choose another model"
    )


def _interned(value: object, known: Known) -> object:
    """Replace tensors in a value by an equal known one, so that batches and blocks share their masks."""
    if isinstance(value, Tensor):
        alike = known.setdefault((value.shape, value.dtype), [])
        for other in alike[-4:]:  # not all: each comparison reads two masks
            if other is value or torch.equal(other, value):
                return other
        alike.append(value)
        return value
    if isinstance(value, dict):
        return {k: _interned(v, known) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_interned(v, known) for v in value)
    return value
