"""The ranks of this run: how they meet, who is who, and what one that ends tells the others."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeVar

from llmprune.errors import JobError, LlmpruneError, RequestError, one_line

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PATIENCE = timedelta(minutes=30)  # that a rank waits for the others, which have as much to do as it has
LOOK = 0.05  # seconds between two looks at whether another rank is done
FAILED = "failed"  # what a rank that ends says to the others, in the store that all of them see
T = TypeVar("T")
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Group:
    """The ranks of this run."""

    number: int
    count: int
    store: Store
    step: int = 0
    """Exchanges so far; every rank counts alike."""


_group: Group | None = None
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


def place() -> int:
    """Which of the processes on this machine this is, from 0; it has the accelerator of this number."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def neighbours() -> int:
    """How many of them share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if count() > 1 else 1


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
        LlmpruneError: another rank ended, or did not answer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    global _group
    import torch.distributed as dist

    _group = _met(patience)
    before = signal.signal(signal.SIGTERM, lambda *_: lost())  # a launcher sends it when one of them ends
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and not error.code):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is leaving, with a sentence of its own
            _tell(error)
        raise
    signal.signal(signal.SIGTERM, before)
    dist.destroy_process_group()


def _met(patience: timedelta) -> Group:
    """Find the other ranks, and take the accelerator of this one's place where there are any."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    backend, accelerator = "gloo", torch.accelerator.current_accelerator(check_available=True)
    if accelerator:
        backend = f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator)}"
        if place() < torch.accelerator.device_count():  # otherwise they can only work on the CPU
            torch.accelerator.set_device_index(place())
    group = None
    try:
        store, rank, size = next(rendezvous("env://", timeout=patience))
        group = Group(rank, size, PrefixStore("llmprune", store))
        group.store.set(f"step-{rank}", "0")
        own = PrefixStore("ranks", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=patience)
    except RuntimeError as error:
        raise _not_met(group, patience) from error
    return group


def _not_met(group: Group | None, patience: timedelta) -> JobError:
    """What to say where not all ranks came together; the first one learns only that."""
    absent: list[str] = []
    with suppress(RuntimeError):  # the store went with its process
        numbers = range(group.count) if group else ()
        absent = [str(one) for one in numbers if group and not group.store.check([f"step-{one}"])]
    who = f"process {' and '.join(absent)}" if absent else "another process"
    return JobError(
        f"{who} of {os.environ['WORLD_SIZE']} did not come to {os.environ['MASTER_ADDR']}:"
        f"{os.environ['MASTER_PORT']} within {patience.total_seconds():g} s; start all of them"
    )


def exchange(call: Callable[[], T]) -> T:
    """What a call gives in which all ranks take part.

    Raises:
        LlmpruneError: one of them does not.
    """
    if count() == 1:
        return call()
    import torch

    try:
        advance()
        return call()
    except torch.OutOfMemoryError:  # a RuntimeError, too
        raise
    except RuntimeError as error:  # the connection broke, or nobody answered in time
        try:
            lost()
        except LlmpruneError as ended:
            raise ended from error


def meet(working: Sequence[int]) -> None:
    """Wait for the ranks that did something alone, however long that took them.

    Raises:
        LlmpruneError: one of them has ended.
    """
    exchange(lambda: _wait(working))


def _wait(working: Sequence[int]) -> None:
    assert _group is not None
    done = {rank: f"done-{_group.step}-{rank}" for rank in working}
    if _group.number in done:
        _group.store.set(done[_group.number], "")
    while not _group.store.check(list(done.values())):
        if _group.store.check([FAILED]):
            lost()
        time.sleep(LOOK)


def advance() -> None:
    """Note for the others how far this rank has come, so that they can name one that does not come."""
    if _group and not _alone:
        _group.step += 1
        _group.store.set(f"step-{_group.number}", str(_group.step))


def lost() -> NoReturn:
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
            _leave_word(JobError(f"{who} of this run has ended or does not answer; rerun with --resume"))
        field, said = json.loads(_group.store.get(FAILED))
    except RuntimeError as error:  # the store went with its process
        raise JobError("another process of this run has ended; rerun with --resume") from error
    raise RequestError(field, said) if field else JobError(said)


def _tell(error: BaseException) -> None:
    """Tell the others why this rank ends."""
    own = isinstance(error, RequestError)
    with suppress(RuntimeError):  # the store is gone, and they know
        _leave_word(error if own else JobError(f"process {number()} of this run ended: {one_line(error)}"))


def _leave_word(error: BaseException) -> None:
    """Note an error for all ranks, unless one of them already did."""
    assert _group is not None
    word = [error.field, error.said] if isinstance(error, RequestError) else [None, str(error)]
    _group.store.compare_set(FAILED, "", json.dumps(word))
