"""A folder is written by one run at a time."""

from __future__ import annotations

from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from llmprune import prune, recover, score
from llmprune.checkpoint import reload
from llmprune.checkpoint.lock import held
from llmprune.cli import demo
from llmprune.errors import JobError, RequestError
from llmprune.planning import reaching
from tests.program import forking
from tests.resume.children import TEXT, WANDA, References, loads, require_same


def waiting(model: Path, out: Path, began: Event, go: Event) -> None:
    """A run that waits with its folder taken."""
    reload.check = loads

    def wait(plan: object) -> None:
        began.set()
        go.wait(60)

    prune(model, WANDA, out=out, on_plan=wait)


def test_others_are_refused_and_the_first_ends_as_if_alone(
    model: Path, tmp_path: Path, references: References, in_process: None
) -> None:
    out, context, pruned = tmp_path / "out", forking(), references(WANDA)[0]
    (tmp_path / "link").symlink_to(tmp_path)
    began, go = context.Event(), context.Event()
    first = context.Process(target=waiting, args=(model, out, began, go))
    first.start()
    try:
        assert began.wait(60)
        for asked in (
            lambda: prune(model, WANDA, out=out),
            lambda: prune(model, WANDA, out=out, resume=True),
            lambda: prune(model, WANDA, out=tmp_path / "link" / "out"),
            lambda: recover(pruned, "reconstruct", out=out),
            lambda: score(model, WANDA, out=out),
            lambda: reaching.reach(str(model), "0.9x", TEXT, out=out),
            lambda: demo.demo(out),
        ):
            with pytest.raises(RequestError, match=r"^out: another run is writing into .*out; wait for it"):
                asked()
        assert not out.exists()
    finally:
        go.set()
        first.join(60)
    assert first.exitcode == 0
    assert prune(model, WANDA, out=out, resume=True).totals
    require_same(out, pruned)


def test_a_recipe_with_a_recovery_holds_the_folder_of_both_steps(
    model: Path, tmp_path: Path, in_process: None
) -> None:
    out, context = tmp_path / "out", forking()
    began, go = context.Event(), context.Event()
    first = context.Process(target=waiting, args=(model, tmp_path / "out-pruned", began, go))
    first.start()
    try:
        assert began.wait(60)
        with pytest.raises(RequestError, match=r"another run is writing into .*out-pruned"):
            prune(model, WANDA | {"recovery": "reconstruct"}, out=out)
    finally:
        go.set()
        first.join(60)
    assert first.exitcode == 0


def test_a_folder_is_free_again_after_a_run_that_failed(
    model: Path, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (JobError("the disk is full"), KeyboardInterrupt()):
        with pytest.raises(type(error)), held(tmp_path / "out"):
            raise error
    prune(model, WANDA | {"recovery": "reconstruct"}, out=tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_no_lock_can_be_taken_is_one_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(RequestError, match=r"out cannot be kept from other runs: .*; set TMPDIR"):
        prune(model, WANDA, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
