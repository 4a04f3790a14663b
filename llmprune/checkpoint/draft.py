"""The output folder while it is being written, and how an interrupted run resumes.

Everything is written into the hidden folder `.unfinished` inside the output folder, one shard per block. A
journal there has a line for the run and one for every block whose shard is whole. At the end the files move
up, config.json last, so that an unfinished folder cannot be taken for a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor
from transformers import PreTrainedModel

from llmprune.checkpoint import journal, shards
from llmprune.checkpoint.journal import BlockRecord, RunHeader
from llmprune.errors import JobError, RequestError

WORK = ".unfinished"
JOURNAL = "journal.jsonl"
STATE = "state.safetensors"  # what an interrupted training resumes from
SCRATCH = "scratch"  # a folder for what a run keeps for itself
READY = "ready"  # exists once every file is whole and checked, and only moving is left


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn what the system says into a sentence."""
    try:
        yield
    except OSError as error:
        raise JobError(
            f"cannot write {file}: {error.strerror}; mend that, then rerun with --resume"
        ) from error


class Draft:
    """An output folder that is not finished yet."""

    def __init__(self, out: Path, blocks: int) -> None:
        self.out, self.folder = out, out / WORK
        self._blocks = blocks
        self.done: list[BlockRecord] = []
        """The blocks whose shards are whole."""

    def resume(self, fingerprint: dict[str, Any]) -> RunHeader | None:
        """Read the journal of an interrupted run into `done`, and remove what it left half-written.

        Returns:
            The run's header, or None if no run was begun here.

        Raises:
            RequestError: it had another fingerprint; the sentence says what differs.
        """
        lines = journal.whole_lines(self.folder / JOURNAL)
        if not lines:
            return None
        journal.require_same(lines[0]["fingerprint"], fingerprint, self.out)
        with _explained(self.folder / JOURNAL):
            journal.rewrite(self.folder / JOURNAL, lines)
            self._drop_halves()
        self.done = [BlockRecord.model_validate(line) for line in lines[1:]]
        return RunHeader.model_validate(lines[0])

    def begin(self, header: RunHeader) -> None:
        """Make the folder and write the run's first line."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in (JOURNAL, STATE):  # of a run whose first line was not written to its end
                (self.folder / left).unlink(missing_ok=True)
            self._drop_halves()
        except OSError as error:
            raise RequestError("out", f"{self.out} cannot be written: {error.strerror}") from error
        self._append(header)

    def shard(self, block: int) -> Path:
        """The file of one block; the tensors outside the blocks come after the last."""
        return self.folder / f"model-{block + 1:05d}-of-{self._blocks + 1:05d}.safetensors"

    @property
    def state(self) -> Path:
        """The file from which a training resumes; no part of the checkpoint."""
        return self.folder / STATE

    @property
    def scratch(self) -> Path:
        """A folder for what the run keeps for itself until it ends; no part of the checkpoint."""
        return self.folder / SCRATCH

    def write_block(self, block: int, tensors: dict[str, Tensor], record: BlockRecord) -> BlockRecord:
        """Write one block's shard, then say in the journal that it is whole.

        Args:
            block: its index in the dense model.
            tensors: none if the block goes as a whole; it then has no shard.
            record: what the journal keeps.

        Returns:
            The record with the keys and the seconds of writing.
        """
        start = time.perf_counter()
        if tensors:
            shards.save_atomically(tensors, self.shard(block))
        written = {"keys": list(tensors), "write_s": time.perf_counter() - start}
        record = record.model_copy(update=written)
        self._append(record)
        self.done.append(record)
        return record

    def write_rest(self, tensors: dict[str, Tensor]) -> None:
        """Write the tensors outside the blocks, and the index of all shards."""
        shards.save_atomically(tensors, self.shard(self._blocks))
        weight_map = {key: self.shard(self._blocks).name for key in tensors}
        for block, record in enumerate(self.done):
            weight_map |= {key: self.shard(block).name for key in record.keys}
        index = {
            "metadata": {"total_size": self.total_size()},
            "weight_map": dict(sorted(weight_map.items())),
        }
        self.write_text(shards.INDEX, json.dumps(index, indent=2))

    def total_size(self) -> int:
        """Bytes of all weights written."""
        return sum(shards.total_bytes(shards.read_file(file)) for file in self._files())

    def total_parameters(self) -> int:
        """How many numbers all weights written are."""
        return sum(stored.numbers for file in self._files() for stored in shards.read_file(file).values())

    def _files(self) -> list[Path]:
        """All shards; a block that went as a whole has none."""
        empty = {block for block, record in enumerate(self.done) if not record.keys}
        return [self.shard(block) for block in range(self._blocks + 1) if block not in empty]

    def write_model(self, model: PreTrainedModel) -> None:
        """Write a whole model in transformers' own way.

        Raises:
            JobError: the disk is full, or the folder cannot be written.
        """
        try:
            model.save_pretrained(self.folder)
        except Exception as error:  # safetensors wraps the system's errors in its own
            raise JobError(
                f"cannot write {self.folder}: {error}; mend that, then rerun with --resume"
            ) from error

    def write_text(self, name: str, text: str) -> None:
        """Write a small file."""
        with _explained(self.folder / name):
            (self.folder / name).write_text(text, encoding="utf-8")

    def copy(self, file: Path) -> None:
        """Take over a file as it is."""
        with _explained(self.folder / file.name):
            shutil.copyfile(file, self.folder / file.name)

    def publish(self) -> None:
        """Move the finished files up, config.json last."""
        with _explained(self.folder / READY):
            (self.folder / READY).touch()
        move_up(self.out)

    def _drop_halves(self) -> None:
        """Remove what safetensors was writing, under a hidden name, when a run was killed."""
        for half in self.folder.glob(".*"):
            half.unlink()

    def _append(self, line: BaseModel) -> None:
        with _explained(self.folder / JOURNAL), (self.folder / JOURNAL).open("a") as file:
            file.write(json.dumps(line.model_dump()) + "\n")
            file.flush()
            os.fsync(file.fileno())


def is_unfinished(out: Path) -> bool:
    """Whether a folder holds an interrupted run."""
    return (out / WORK).is_dir()


def move_up(out: Path) -> bool:
    """Finish a move that was begun; False if the run had not come so far."""
    folder = out / WORK
    if not (folder / READY).exists():
        if (out / "config.json").exists() and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        return False
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    own = (JOURNAL, STATE, READY)
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
        if path.name not in own:
            path.replace(out / path.name)
    shards.sync_folder(out)
    for name in own:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
    return True


def require_usable(out: Path, *, resume: bool) -> None:
    """Refuse an output folder that holds something, unless an interrupted run left it and `resume` is set.

    Raises:
        RequestError: the folder is not empty, cannot be written, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise RequestError("out", f"{out} is a file; name a folder that does not exist yet")
    place = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not os.access(place, os.W_OK | os.X_OK | os.R_OK):
        raise RequestError("out", f"{out} cannot be written: {place} does not let you")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not resume:
        hint = "rerun with --resume, or " if is_unfinished(out) else ""
        raise RequestError("out", f"{out} is not empty; {hint}name a folder that does not exist yet")
    strangers = [path.name for path in out.iterdir() if path.name != WORK]
    if strangers and not (out / WORK / READY).exists() and not (out / "llmprune_report.json").exists():
        raise RequestError(
            "out", f"{out} holds {strangers[0]}, which no run of llmprune left there to resume"
        )
