"""Several processes on one job, started by torchrun or `accelerate launch`: my share, and sums in order.

Every process (*rank*) takes a share of the calibration batches. What they measured is added in the order of
the batches, so that it does not depend on how many ranks there are. The first rank decides and writes. A
single process has all to itself, and none of this costs it anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from llmprune.errors import LlmpruneError, RequestError
from llmprune.ranks.group import (
    advance,
    alone,
    count,
    exchange,
    first,
    joined,
    meet,
    neighbours,
    number,
    place,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["advance", "alone", "count", "exchange", "first", "joined", "neighbours", "number", "place"]

T = TypeVar("T")
R = TypeVar("R")
CHUNK = 1 << 23  # elements that are added up at a time, in float64
_before = 0


def share(items: Sequence[T]) -> list[T]:
    """This rank's part of the batches: neighbours, so that those of all ranks in turn are all in order."""
    global _before
    own = part(len(items))
    _before = own.start
    return list(items[own])


def before() -> int:
    """How many batches the ranks before this one have, of those that were shared last."""
    return _before


def part(total: int, rank: int | None = None) -> slice:
    """Which of so many things are this rank's, or another's."""
    if count() == 1:
        return slice(0, total)
    own = number() if rank is None else rank
    return slice(total * own // count(), total * (own + 1) // count())


def require_enough(batches: int, size: int) -> None:
    """Refuse more ranks than there are batches of `size` windows.

    Raises:
        RequestError: one would have nothing to do.
    """
    if batches < count():
        raise RequestError(
            "ranks",
            f"{count()} processes were started, and batches of {size} windows make {batches} of the text; "
            "start fewer, or ask for more --samples",
        )


def gathered(items: list[T]) -> list[T]:
    """The items of all ranks, in order; tensors come to the device on which this rank computes."""
    if count() == 1:
        return items
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    exchange(lambda: dist.all_gather_object(found, _packed(items)))
    return [item for part in found for item in pickle.loads(part)]


def whole(rows: Tensor, total: int) -> Tensor:
    """The matrix [R, C] of which this rank has its `part` of so many rows."""
    import torch
    import torch.distributed as dist

    sizes = [len(range(total)[part(total, rank)]) for rank in range(count())]
    own = rows.new_zeros(max(sizes), rows.shape[1])
    own[: len(rows)] = rows
    found = [torch.empty_like(own) for _ in sizes]
    # As bytes: not every dtype can be sent.
    exchange(partial(dist.all_gather, [one.view(torch.uint8) for one in found], own.view(torch.uint8)))
    return torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)])


def add_up(part: Tensor) -> None:
    """Replace the entries [R, C] by their sums over all ranks, made in float64 and rounded once."""
    import torch.distributed as dist

    for rows in part.split(max(1, CHUNK // part[0].numel())):
        total = rows.double()
        exchange(partial(dist.all_reduce, total))
        rows.copy_(total)


def from_first(compute: Callable[[], T]) -> T:
    """What the first rank computes, alone, once all have come; they wait for it, however long it takes.

    Raises:
        LlmpruneError: it failed there; every rank raises what it raised.
    """
    if count() == 1:
        return compute()
    import torch.distributed as dist

    gathered([])  # a rank may still read what the first one is about to move or delete
    outcome: list[Any] = [None]
    if first():
        with alone():
            outcome = [_packed(_attempt(compute))]
    meet([0])
    exchange(lambda: dist.broadcast_object_list(outcome))
    done: tuple[T, LlmpruneError | None] = pickle.loads(outcome[0])
    return _settled(done)


def everywhere(compute: Callable[[], T]) -> T:
    """What every rank computes for itself; if one cannot, none goes on.

    Raises:
        LlmpruneError: that of the first rank that failed, on every rank.
    """
    value, error = _attempt(compute)
    failed = [one for one in gathered([error]) if one is not None]
    return _settled((value, failed[0] if failed else None))


def divided(items: Sequence[T], compute: Callable[[T], R]) -> list[R]:
    """What is computed of every item, each by one rank alone, in the order of the items.

    Raises:
        LlmpruneError: that of the first rank that failed, on every rank.
    """
    if count() == 1:
        return [compute(item) for item in items]
    own = items[part(len(items))]
    with alone():
        outcome = _attempt(lambda: [compute(item) for item in own])
    meet(range(count()))
    return gathered(everywhere(lambda: _settled(outcome)))


def require_same(facts: Mapping[str, object]) -> None:
    """Refuse ranks that would not do the same, before any of them begins.

    Args:
        facts: all that the result depends on, as JSON data.

    Raises:
        RequestError: it names the first difference, on every rank.
    """
    told = {key: hashlib.sha256(json.dumps(value).encode()).hexdigest() for key, value in facts.items()}
    known = gathered([told])
    for rank, other in enumerate(known):
        differing = [key for key in {**known[0], **other} if known[0].get(key) != other.get(key)]
        if differing:
            raise RequestError(
                "ranks", f"process {rank} has another {differing[0]} than process 0; start all with the same"
            )


def _attempt(compute: Callable[[], T]) -> tuple[T | None, LlmpruneError | None]:
    try:
        return compute(), None
    except LlmpruneError as error:
        return None, error


def _settled(outcome: tuple[T | None, LlmpruneError | None]) -> T:
    value, error = outcome
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # there is an error where there is no value


class _Pickler(pickle.Pickler):
    """Sends tensors by way of the host, since the other process has another device."""

    def reducer_override(self, value: object) -> Any:
        import torch

        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            return _to_own_device, (value.cpu(), value.device.type)
        return NotImplemented


def _to_own_device(tensor: Tensor, kind: str) -> Tensor:
    return tensor.to(kind)


def _packed(value: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()
