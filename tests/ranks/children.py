"""Processes that prune together, and may end on the way."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate.state import DistributedType, PartialState

from llmprune import prune, ranks, recover
from llmprune.checkpoint import reload
from llmprune.checkpoint.draft import Draft
from llmprune.errors import LlmpruneError
from llmprune.tensors.statistics import Gram
from llmprune.training import pace
from llmprune.training.trainer import _Trainer
from llmprune.walk.observation import Observation
from llmprune.walk.walk import Walk
from tests.program import forking
from tests.reloading import check_here

Asked = dict[str, Any]  # the arguments of one call of `prune`
ENDS: dict[str, Callable[[], object]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "out of memory": lambda: (_ for _ in ()).throw(MemoryError),
    "asleep": lambda: time.sleep(6),
    "late": lambda: time.sleep(1),
}
AT = "killed at "  # a second after its start
WHOLE = "killed with all blocks written"
OURS = ("only", "ends", "grams", "sharded")  # what `prune` and `recover` do not know


def child(notes: Path, rank: int, count: int, port: int, asked: list[Asked], patience: int) -> None:
    """One of several processes: prune as asked, one after another, and note what each call said.

    Args:
        notes: a folder for what it has to say, and what it walked the model for.
        rank: its number.
        count: how many there are.
        port: where they meet.
        asked: `only` holds what this rank is asked otherwise; `ends` which rank ends how, in block 1 of what
            it prunes, in step 6 of what it trains, or at a time; `grams` where to keep block 0's matrices;
            `sharded` whether FSDP2 trains.
        patience: seconds to wait for the others.
    """
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    log = (notes / f"log-{rank}").open("w")
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    torch.set_num_threads(1)
    _note_walks((notes / f"walks-{rank}").open("w", buffering=1))
    reload.check = check_here  # a fresh process takes seconds to start
    said = notes / f"said-0-{rank}"
    try:
        with ranks.joined(timedelta(seconds=patience)):
            for number, one in enumerate(asked):
                said = notes / f"said-{number}-{rank}"
                _do(one, rank, said)
    except LlmpruneError as error:
        said.write_text(f"{type(error).__name__}: {error}")


def _do(one: Asked, rank: int, said: Path) -> None:
    """Do what was asked of a rank, and note what it said."""
    request = {key: value for key, value in one.items() if key not in OURS}
    if "ends" in one:
        pace.SAVE_EVERY, pace.SHARE = 0.0, 1e9  # a checkpoint after every step
    if rank == one.get("ends", (None, ""))[0]:
        _end(one["ends"][1])
    if one.get("sharded"):
        _shard()
    if rank == 0 and "grams" in one:
        _keep_grams(one["grams"])
    try:
        call = recover if "how" in request else prune
        call(**(request | one.get("only", {}).get(rank, {})))
        said.write_text("done")
    except LlmpruneError as error:
        said.write_text(f"{type(error).__name__}: {error}")
        if "ends" in one:
            raise


def _keep_grams(file: Path) -> None:
    """Keep the first four Gram matrices that are complete: those of block 0."""
    own, found = Observation.complete, []

    def complete(self: Observation) -> None:
        own(self)
        if len(found) < 4:
            found.append(self.statistic.of(Gram).value.clone())
            torch.save(found, file)

    Observation.complete = complete  # type: ignore[method-assign]


def _shard() -> None:
    """Ask for FSDP2 as `accelerate launch` does, and let accelerate take processes on CPUs for its own."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    own = PartialState.__init__

    def __init__(self: PartialState, *args: Any, **rest: Any) -> None:
        own(self, *args, **rest)
        self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = __init__


def _note_walks(file: TextIO) -> None:
    """Write down what this rank walks the model for."""
    own = Walk.stages

    def stages(self: Walk, label: str, **rest: bool) -> Iterator[Any]:
        file.write(f"{label}\n")
        return own(self, label, **rest)

    Walk.stages = stages  # type: ignore[method-assign]


def _end(how: str) -> None:
    """Let this rank end when it comes to block 1 of its pruning, or to step 6 of its training."""
    if how.startswith(AT):
        threading.Timer(float(how.removeprefix(AT)), ENDS["killed"]).start()
        return
    if how == WHOLE:
        Draft.write_rest = lambda *_: ENDS["killed"]()  # type: ignore[method-assign]
        return
    own, step = Walk.stages, _Trainer.training_step

    def stages(self: Walk, label: str, **rest: bool) -> Iterator[Any]:
        for stage in own(self, label, **rest):
            if label == "pruning" and stage.index == 1:
                ENDS[how]()
            yield stage

    def training_step(self: _Trainer, *rest: Any) -> Any:
        if self.state.global_step == 5:
            ENDS[how]()
        return step(self, *rest)

    Walk.stages = stages  # type: ignore[method-assign]
    _Trainer.training_step = training_step  # type: ignore[method-assign]


class Ranks:
    """Starts processes from one that has imported everything, so that they cost no start-up."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._launches = folder, 0
        self._context = forking()

    def __call__(
        self, *asked: Asked, count: int = 2, patience: int = 20, started: int | None = None
    ) -> list[list[str]]:
        """What every rank said to every request; nothing where it came to no end.

        Args:
            asked: the requests.
            count: how many ranks there are to be.
            patience: seconds to wait for one another.
            started: how many are started, if not all.
        """
        self._launches += 1
        notes = self.folder / f"launch-{self._launches}"
        notes.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = [(notes, rank, count, port, list(asked), patience) for rank in range(started or count)]
        processes = [self._context.Process(target=child, args=one) for one in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode is not None, "a rank hangs"
        for rank, process in enumerate(processes):
            if process.exitcode:  # pytest shows it where a test fails
                log = (notes / f"log-{rank}").read_text()
                sys.stderr.write(f"rank {rank} exits {process.exitcode}\n{log}")
        files = [[notes / f"said-{n}-{rank}" for rank in range(count)] for n in range(len(asked))]
        return [[file.read_text() if file.is_file() else "" for file in line] for line in files]
