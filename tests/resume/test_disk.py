"""A run that is out of disk says so, and goes on to the very same bytes once there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmprune import prune, recover
from llmprune.checkpoint import reload
from llmprune.checkpoint.draft import WORK, Draft
from llmprune.errors import JobError, RequestError
from llmprune.training import trainer
from tests.disk import fill
from tests.resume.children import WANDA, Process, References, loads, require_same

HOW = {"name": "lora", "epochs": 4}


def test_a_full_disk_when_adapters_are_merged_is_one_sentence(
    model: Path, disk: Path, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained is kept: with room again, only merging is left."""
    pruned, out, own = tmp_path / "pruned", disk / "out", Draft.write_model

    def filled(self: Draft, *arguments: Any) -> Any:
        fill(disk, 0)
        return own(self, *arguments)

    prune(model, WANDA, out=pruned)
    with monkeypatch.context() as patch, pytest.raises(JobError, match=r"cannot write .*No space") as raised:
        patch.setattr(Draft, "write_model", filled)
        recover(pruned, HOW, out=out)
    assert "\n" not in str(raised.value)
    assert not (out / "config.json").exists()
    (disk / "hog").unlink()
    with monkeypatch.context() as patch:
        patch.delattr(trainer._Trainer, "compute_loss")
        recover(pruned, HOW, out=out, resume=True)
    assert not (out / WORK).exists()


STEPS = ["begin", "write_block", "write_rest", "write_text", "copy"]


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(
    references: References,
    model: Path,
    disk: Path,
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Something else fills the disk just before one step of the run."""
    out, calls = disk / "out", 0
    own = getattr(Draft, step)

    def filled(self: Draft, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (3 if step == "write_block" else 1):
            fill(disk, 0)
        return own(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Draft, step, filled)
        with pytest.raises((JobError, RequestError)) as raised:
            prune(model, WANDA, out=out)
    assert "\n" not in str(raised.value)
    assert str(out) in str(raised.value)
    assert not (out / "config.json").exists()
    (disk / "hog").unlink()
    monkeypatch.setattr(reload, "check", loads)
    prune(model, WANDA, out=out, resume=True)
    require_same(out, references(WANDA)[0])


def test_a_run_that_is_gone_on_with_needs_room_for_the_rest_only(
    references: References, model: Path, disk: Path, process: Process
) -> None:
    out = disk / "out"
    reference, touched = references(WANDA)
    process(model, out, WANDA, die_at=touched // 3, resume=False)
    written = sum(path.stat().st_size for path in (out / WORK).iterdir())
    weights = sum(path.stat().st_size for path in reference.glob("*.safetensors"))
    assert written > weights // 4
    fill(disk, weights - 1000)
    process.finish(model, out, WANDA)
    require_same(out, reference)


def test_a_disk_too_small_is_refused_before_anything_is_written(model: Path, disk: Path) -> None:
    fill(disk, 50_000)
    with pytest.raises(JobError, match=r"needs .* of disk"):
        prune(model, WANDA, out=disk / "out")
    assert [path.name for path in disk.iterdir()] == ["hog"]
