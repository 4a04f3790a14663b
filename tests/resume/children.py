"""Processes that prune and may die on the way, and what they must leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmprune import prune
from llmprune.checkpoint import reload
from llmprune.checkpoint.draft import WORK
from llmprune.errors import RequestError
from tests.program import forking

BLOCKS = 6
TEXT = {"samples": 6, "length": 32}
WANDA: dict[str, Any] = {"method": "wanda", "calibration": TEXT}
VARYING = ("llmprune_report.json", "README.md")  # they tell times and sizes of memory
WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"}
CHECKED = {"line": "load({folder})", "compared": "logits", "max_abs_logit_difference": 0.0}


def loads(folder: Path, *_: object) -> dict[str, Any]:
    """In place of the fresh process of `reload.check`."""
    AutoModelForCausalLM.from_pretrained(folder)
    return dict(CHECKED)


def changes(event: str, arguments: tuple[Any, ...], folder: Path) -> bool:
    """Whether an audit event changes something in a folder; `rmtree` names files by their last part."""
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return False
    return str(folder) in str(arguments[0]) or (event in ("os.remove", "os.rmdir") and arguments[1] != -1)


def child(
    notes: Path, model: Path, out: Path, recipe: dict[str, Any], die_at: int | None, resume: bool
) -> None:
    """A process that prunes, notes its outcome, and may die just before it changes a file there.

    Args:
        notes: a folder for what it has to say.
        model: the checkpoint.
        out: the folder to write.
        recipe: what is asked.
        die_at: how many changes it may make in `out` and live; None for as many as it needs.
        resume: whether it goes on with what is there.
    """
    torch.set_num_threads(1)
    reload.check = loads
    touched = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touched
        if event in WATCHED and changes(event, arguments, out):
            if touched == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            touched += 1

    outcome: dict[str, Any] = {}
    log = (notes / "log").open("w")
    os.dup2(log.fileno(), 2)
    sys.addaudithook(watch)
    try:
        prune(model, recipe, out=out, resume=resume)
    except Exception as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    outcome["touched"] = touched
    (notes / "outcome").write_text(json.dumps(outcome))


class Process:
    """Starts children from one process that has imported everything; a child costs no start-up."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._context = forking()

    def __call__(
        self,
        model: Path,
        out: Path,
        recipe: dict[str, Any],
        *,
        die_at: int | None = None,
        die_after: float | None = None,
        resume: bool = True,
    ) -> dict[str, Any] | None:
        """The outcome of one child, or None if it was killed."""
        log, outcome = self._notes / "log", self._notes / "outcome"
        log.unlink(missing_ok=True)
        process = self._context.Process(target=child, args=(self._notes, model, out, recipe, die_at, resume))
        process.start()
        if die_after is not None:
            while process.is_alive() and not log.exists():
                time.sleep(0.001)
            process.join(die_after)
            process.kill()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode:
            return None
        said: dict[str, Any] = json.loads(outcome.read_text())
        return said

    def finish(self, model: Path, out: Path, recipe: dict[str, Any], *, resume: bool = True) -> int:
        """How many changes a child made in `out` that went on to the end."""
        outcome = self(model, out, recipe, resume=resume)
        assert outcome is not None
        assert "error" not in outcome, outcome["error"]
        touched: int = outcome["touched"]
        return touched


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder, but for those that vary."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in VARYING]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def report_of(folder: Path) -> dict[str, Any]:
    """The report without what varies from run to run."""
    report: dict[str, Any] = json.loads((folder / "llmprune_report.json").read_text())
    report["reload"].pop("line")  # it names the folder
    return {key: value for key, value in report.items() if key not in ("time", "memory")}


class References:
    """Uninterrupted runs, made when they are first asked for, and how many changes each made."""

    def __init__(self, root: Path, model: Path, process: Process) -> None:
        self._root, self._model, self._process = root, model, process
        self._made: dict[str, tuple[Path, int]] = {}

    def __call__(self, recipe: dict[str, Any]) -> tuple[Path, int]:
        key = json.dumps(recipe)
        if key not in self._made:
            out = self._root / str(len(self._made))
            self._made[key] = out, self._process.finish(self._model, out, recipe, resume=False)
        return self._made[key]


def require_unfinished(out: Path, model: Path, recipe: dict[str, Any]) -> None:
    """What was cut off is no checkpoint, and is not written over unless asked."""
    assert not (out / "config.json").exists()
    with pytest.raises((OSError, ValueError)):
        AutoConfig.from_pretrained(out)
    if out.exists():
        with pytest.raises(RequestError, match="rerun with --resume") as raised:
            prune(model, recipe, out=out)
        assert raised.value.field == "out"


def require_same(out: Path, reference: Path) -> None:
    """`out` is the finished checkpoint that an uninterrupted run writes."""
    assert not (out / WORK).exists()
    assert hashes(out) == hashes(reference)
    assert report_of(out) == report_of(reference)
    assert {path.name for path in out.iterdir()} == {path.name for path in reference.iterdir()}
