"""The output folder while it is written: a full disk or an interrupted run loses no finished block.

All files are written into the hidden folder `.unfinished` inside the output folder, one shard per block. A
journal there has one line for the run and one for every block whose shard is complete. At the end the files
are moved up, config.json last, so that an unfinished folder is never taken for a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor
from transformers import PreTrainedModel

from llmprune import ranks
from llmprune.checkpoint import journal, shards
from llmprune.checkpoint.journal import BlockRecord, Fingerprint, RunHeader
from llmprune.checkpoint.once import Once
from llmprune.errors import JobError, RequestError
from llmprune.paths import UNFINISHED

WORK = UNFINISHED
JOURNAL = "journal.jsonl"
STATE = "state.safetensors"  # from which an interrupted training resumes
SCRATCH = "scratch"  # a folder for temporary files of the run
READY = "ready"  # exists once all files are complete and checked, and only have to be moved


@contextmanager
def _as_job_error(file: Path) -> Iterator[None]:
    """Raise a JobError that names the file, in place of an OSError."""
    try:
        yield
    except OSError as error:
        raise JobError(
            f"cannot write {file}: {error.strerror}; fix that, then rerun with --resume"
        ) from error


class Draft:
    """An output folder that is not finished yet.

    Args:
        out: the folder.
        last: number of its last shard, from 0: of a checkpoint, the tensors outside the blocks.
        stem: how the names of its shards begin.
    """

    def __init__(self, out: Path, last: int, stem: str = "model") -> None:
        self.out, self.folder = out, out / WORK
        self._last, self._stem = last, stem
        self.done: list[BlockRecord] = []
        """The records of the blocks whose shards are complete, in order."""

    def resume(self, fingerprint: Fingerprint) -> RunHeader | None:
        """Read the journal of an interrupted run into `done`, and delete its incomplete files.

        Returns:
            The run's header, or None if there is no interrupted run.

        Raises:
            RequestError: the run had another fingerprint; the message names the first difference.
        """
        lines = ranks.from_first(lambda: self._cleared(fingerprint))
        if not lines:
            return None
        self.done = [BlockRecord.model_validate(line) for line in lines[1:]]
        return RunHeader.model_validate(lines[0])

    def _cleared(self, fingerprint: Fingerprint) -> list[dict[str, Any]]:
        """The lines of the journal, once nothing else is left of the interrupted run."""
        lines = journal.complete_lines(self.folder / JOURNAL)
        if lines:
            journal.require_same(lines[0]["fingerprint"], fingerprint, as_named(self.out))
            with _as_job_error(self.folder / JOURNAL):
                journal.rewrite(self.folder / JOURNAL, lines)
                self._remove_partial_files()
        return lines

    def claim(self, fingerprint: Fingerprint) -> None:
        """Take the scratch folder for a run that will keep its work there before the journal has a line.

        Raises:
            RequestError: it holds the work of another run; the message names the first difference.
        """
        with _as_job_error(self.scratch):
            once = Once(self.scratch)
        journal.require_same(once("request", lambda: fingerprint), fingerprint, as_named(self.out))

    def begin(self, header: RunHeader) -> None:
        """Make the folder and write the run's first line."""
        if not ranks.first():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Of a run that was interrupted before its first line was complete: it cannot be resumed.
            for name in (JOURNAL, STATE):
                (self.folder / name).unlink(missing_ok=True)
            self._remove_partial_files()
        except OSError as error:
            raise RequestError("out", f"{self.out} cannot be written: {error.strerror}") from error
        self._append(header)

    def shard(self, block: int) -> Path:
        """The file of one block, or the last one."""
        return self.folder / f"{self._stem}-{block + 1:05d}-of-{self._last + 1:05d}.safetensors"

    @property
    def state(self) -> Path:
        """The file from which a training resumes; not part of the checkpoint."""
        return self.folder / STATE

    @property
    def scratch(self) -> Path:
        """A folder for temporary files of the run; not part of the checkpoint."""
        return self.folder / SCRATCH

    def write_block(self, block: int, tensors: dict[str, Tensor], record: BlockRecord) -> BlockRecord:
        """Write one block's shard, then its line in the journal.

        Args:
            block: its index in the dense model.
            tensors: of the shard; empty if the whole block is removed, which then has no shard.
            record: the line for the journal, without `keys` and `write_s`.

        Returns:
            The record with `keys` and `write_s`.
        """
        start = time.perf_counter()
        if tensors and ranks.first():
            shards.save_atomically(tensors, self.shard(block))
        written = {"keys": list(tensors), "write_s": time.perf_counter() - start}
        record = record.model_copy(update=written)
        # After the shard is on disk: a line in the journal is the promise that the shard is complete.
        self._append(record)
        self.done.append(record)
        return record

    def write_rest(self, tensors: dict[str, Tensor]) -> None:
        """Write the tensors outside the blocks, and the index of all shards."""
        shards.save_atomically(tensors, self.shard(self._last))
        weight_map = {key: self.shard(self._last).name for key in tensors}
        for block, record in enumerate(self.done):
            weight_map |= {key: self.shard(block).name for key in record.keys}
        index = {
            "metadata": {"total_size": self.total_size()},
            "weight_map": dict(sorted(weight_map.items())),
        }
        self.write_text(shards.INDEX, json.dumps(index, indent=2))

    def total_size(self) -> int:
        """Bytes of all tensors written."""
        return sum(shards.total_bytes(shards.read_file(file)) for file in self._files())

    def total_parameters(self) -> int:
        """Number of parameters in all tensors written."""
        return sum(stored.numel for file in self._files() for stored in shards.read_file(file).values())

    def _files(self) -> list[Path]:
        """All shards; a block that was removed has none."""
        empty = {block for block, record in enumerate(self.done) if not record.keys}
        return [self.shard(block) for block in range(self._last + 1) if block not in empty]

    def write_model(self, model: PreTrainedModel) -> None:
        """Write a whole model with its `save_pretrained`.

        Raises:
            JobError: the disk is full, or the folder cannot be written.
        """
        try:
            model.save_pretrained(self.folder)
        except Exception as error:  # safetensors wraps the system's errors in its own
            raise JobError(
                f"cannot write {self.folder}: {error}; fix that, then rerun with --resume"
            ) from error

    def write_text(self, name: str, text: str) -> None:
        """Write a small file."""
        with _as_job_error(self.folder / name):
            (self.folder / name).write_text(text, encoding="utf-8")

    def copy(self, file: Path) -> None:
        """Copy a file into the checkpoint."""
        with _as_job_error(self.folder / file.name):
            shutil.copyfile(file, self.folder / file.name)

    def publish(self) -> None:
        """Mark the files as complete, and move them into the output folder."""
        with _as_job_error(self.folder / READY):
            (self.folder / READY).touch()
        move_up(self.out)

    def discard(self) -> None:
        """Delete what was written; the output folder too, if nothing else is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.out.rmdir()

    def _remove_partial_files(self) -> None:
        """Delete the hidden files that safetensors writes to before it renames them."""
        for file in self.folder.glob(".*"):
            file.unlink()

    def _append(self, line: BaseModel) -> None:
        if not ranks.first():
            return
        with _as_job_error(self.folder / JOURNAL), (self.folder / JOURNAL).open("a") as file:
            file.write(json.dumps(line.model_dump()) + "\n")
            file.flush()
            os.fsync(file.fileno())  # or a power cut loses the line, and the block must be computed again


def is_unfinished(out: Path) -> bool:
    """Whether a folder holds an interrupted run."""
    return (out / WORK).is_dir()


def move_up(out: Path) -> bool:
    """Move complete files into the output folder; return False if they are not all written yet.

    Also completes a move that was interrupted.
    """
    folder = out / WORK
    if not (folder / READY).exists():
        # Interrupted between the last two steps below: only the empty folder must be deleted.
        if (out / "config.json").exists() and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        return False
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    own = (JOURNAL, STATE, READY)
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
        if path.name not in own:
            path.replace(out / path.name)
    shards.sync_folder(out)
    # READY goes last of the files: until then, an interrupted move can be completed.
    for name in own:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
    return True


def step_folder(out: Path, number: int) -> Path:
    """The folder of one step of a recipe, numbered from 1; it goes when the run ends."""
    return out / WORK / SCRATCH / f"step-{number}"


def as_named(out: Path) -> Path:
    """The folder that the user named: of a step's, the one that holds it."""
    return out.parents[2] if out.parent.name == SCRATCH else out


def require_usable(out: Path, *, resume: bool) -> None:
    """Refuse an output folder that is not empty, unless `resume` is set and llmprune wrote it.

    Raises:
        RequestError: the folder is not empty, cannot be written, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise RequestError("out", f"{out} is a file; name a folder that does not exist yet")
    place = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not os.access(place, os.W_OK | os.X_OK | os.R_OK):
        raise RequestError(
            "out", f"{out} cannot be written: you lack permission for {place}; name another folder"
        )
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not resume:
        hint = "rerun with --resume, or " if is_unfinished(out) else ""
        raise RequestError("out", f"{out} is not empty; {hint}name a folder that does not exist yet")
    strangers = [path.name for path in out.iterdir() if path.name != WORK]
    if strangers and not (out / WORK / READY).exists() and not (out / "llmprune_report.json").exists():
        raise RequestError(
            "out",
            f"{out} holds {strangers[0]}, which no run of llmprune left there to resume; name another folder",
        )
