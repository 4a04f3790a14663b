"""Several processes on one job, started by torchrun or `accelerate launch`: who am I, my share, sums in order

Every process (*rank*) takes a share of the calibration batches. What they measured is added in the order of
the batches, so that it does not depend on how many ranks there are. The first rank decides and writes. A
single process has all to itself, and none of this costs it anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from llmprune.errors import JobError, LlmpruneError, RequestError, one_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # that a rank waits for the others, which have as much to do as it has
CHUNK = 1 << 23  # elements that are added up at a time, in float64
LOOK = 0.05  # seconds between two looks at whether the first rank is done
FAILED = "failed"  # what a rank that ends says to the others, in the store that all of them see
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class _Group:
    """The ranks of this run."""

    number: int
    count: int
    store: Store
    step: int = 0
    """Exchanges so far; every rank counts alike."""

    before: int = 0
    """Batches of the ranks before this one, where batches were shared last."""


_group: _Group | None = None
_alone = False


def count() -> int:
    """How many ranks share the work at hand."""
    return _group.count if _group and not _alone else 1


def number() -> int:
    """Which of them this process is, from 0."""
    return _group.number if _group else 0


def first() -> bool:
    """Whether this rank is the one that writes and speaks."""
    return number() == 0


def launched() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def place() -> int:
    """Which of the processes on this machine this is, from 0; it has the GPU of this number."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def neighbours() -> int:
    """How many of them share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if count() > 1 else 1


def share(items: Sequence[T]) -> list[T]:
    """This rank's part of the batches: neighbours, so that those of all ranks in turn are all in order."""
    if _group is None or count() == 1:
        return list(items)
    own = part(len(items))
    _group.before = own.start
    return list(items[own])


def part(total: int, rank: int | None = None) -> slice:
    """Which of so many things are this rank's, or another's."""
    own = number() if rank is None else rank
    return slice(total * own // count(), total * (own + 1) // count())


def before() -> int:
    """How many batches the ranks before this one have, of those that were shared last."""
    return _group.before if _group and count() > 1 else 0


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
    _exchange(lambda: dist.all_gather_object(found, _packed(items)))
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
    _exchange(partial(dist.all_gather, [one.view(torch.uint8) for one in found], own.view(torch.uint8)))
    return torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)])


def add_up(part: Tensor) -> None:
    """Replace the entries [R, C] by their sums over all ranks, made in float64 and rounded once."""
    import torch.distributed as dist

    for rows in part.split(max(1, CHUNK // part[0].numel())):
        total = rows.double()
        _exchange(partial(dist.all_reduce, total))
        rows.copy_(total)


def from_first(compute: Callable[[], T]) -> T:
    """What the first rank computes, alone; the others wait for it, however long it takes.

    Raises:
        LlmpruneError: it failed there; every rank raises what it raised.
    """
    if count() == 1:
        return compute()
    import torch.distributed as dist

    assert _group is not None
    outcome: list[Any] = [None]
    if first():
        with alone():
            outcome = [_packed(_attempt(compute))]
    _step()
    ready = f"ready-{_group.step}"
    if first():
        _group.store.set(ready, "")
    else:
        _await(_group.store, ready)
    _exchange(lambda: dist.broadcast_object_list(outcome))
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


@contextmanager
def alone() -> Iterator[None]:
    """Let this rank do without the others what they would share; libraries that it calls see one process."""
    global _alone
    before, _alone = _alone, True
    hidden = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
        _alone = before


@contextmanager
def joined(patience: timedelta = PATIENCE) -> Iterator[None]:
    """Work together with the other processes that the launcher started, if it started any.

    Args:
        patience: how long to wait for a rank before it counts as lost.

    Raises:
        JobError: another rank ended, or did not answer.
    """
    if not launched():
        yield
        return
    global _group
    import torch.distributed as dist

    _group = _meet(patience)
    before = signal.signal(signal.SIGTERM, lambda *_: _lost())  # what a launcher sends when one of them ends
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and not error.code):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is leaving, with a sentence of its own
            _tell(error)
        raise
    signal.signal(signal.SIGTERM, before)
    dist.destroy_process_group()


def _meet(patience: timedelta) -> _Group:
    """Find the other ranks, and take the GPU of this one's number where there are GPUs."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        if place() < torch.cuda.device_count():  # otherwise they can only work on the CPU
            torch.cuda.set_device(place())
    store, rank, size = next(rendezvous("env://", timeout=patience))
    dist.init_process_group(
        backend, store=PrefixStore("ranks", store), rank=rank, world_size=size, timeout=patience
    )
    return _Group(rank, size, PrefixStore("llmprune", store))


def _step() -> None:
    """Note for the others how far this rank has come."""
    assert _group is not None
    _group.step += 1
    _group.store.set(f"step-{_group.number}", str(_group.step))


def _exchange(call: Callable[[], object]) -> None:
    """Make a call in which all ranks take part.

    Raises:
        LlmpruneError: one of them does not.
    """
    try:
        _step()
        call()
    except RuntimeError as error:  # the connection broke, or nobody answered in time
        try:
            _lost()
        except LlmpruneError as lost:
            raise lost from error


def _await(store: Store, key: str) -> None:
    """Wait for a key of the store."""
    while not store.check([key]):
        if store.check([FAILED]):
            _lost()
        time.sleep(LOOK)


def _lost() -> NoReturn:
    """Say which rank has ended, as far as that can be known.

    Raises:
        LlmpruneError: what it said itself, or who did not come to the last exchange.
    """
    assert _group is not None
    try:
        if not _group.store.check([FAILED]):
            steps = [int(_group.store.get(f"step-{rank}")) for rank in range(_group.count)]
            behind = [str(rank) for rank, step in enumerate(steps) if step < _group.step]
            who = f"process {' or '.join(behind)}" if behind else "another process"
            _word(JobError(f"{who} of this run has ended or does not answer; rerun with --resume"))
        field, said = json.loads(_group.store.get(FAILED))
    except RuntimeError as error:  # the store went with its process
        raise JobError("another process of this run has ended; rerun with --resume") from error
    raise RequestError(field, said) if field else JobError(said)


def _tell(error: BaseException) -> None:
    """Leave word for the others why this rank ends."""
    own = isinstance(error, RequestError)
    with suppress(RuntimeError):  # the store is gone, and they know
        _word(error if own else JobError(f"process {number()} of this run ended: {one_line(error)}"))


def _word(error: BaseException) -> None:
    """Note an error for all ranks, unless one of them already did."""
    assert _group is not None
    word = [error.field, error.said] if isinstance(error, RequestError) else [None, str(error)]
    _group.store.compare_set(FAILED, "", json.dumps(word))


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
