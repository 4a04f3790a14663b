"""What is measured later stands beside what was measured before, and takes the place of its like only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from llmprune_eval import bench, keeping
from llmprune_eval.tasks import Ask

from llmprune import prune, recover, report
from llmprune.cli import app
from llmprune.errors import JobError, RequestError
from llmprune.text import sources
from tests import tiny
from tests.disk import fill, read_only

pytestmark = pytest.mark.usefixtures("check_in_process")

RATES = {"name": "m", "prefill_tokens_per_s": 1.0, "decode_tokens_per_s": 2.0}
SPEED = {"protocol": "p", "models": [RATES]}


@pytest.fixture
def folder(checkpoints: tiny.Checkpoints, tmp_path: Path) -> Path:
    prune(checkpoints("llama"), {"method": "magnitude", "pattern": "2:4"}, out=tmp_path / "out")
    return tmp_path / "out"


def figures(
    name: object, texts: dict[str, float], tasks: dict[str, float], length: int = 8
) -> dict[str, Any]:
    """What an evaluation of a model gives, in short."""
    stamp = {"protocol": "p", "length": length, "tokenizer": "t", "bits_per_byte": 1.0}
    perplexity = [{"dataset": text, "perplexity": value, **stamp} for text, value in texts.items()]
    scored = {task: {"metric": "acc", "acc": value, "examples": {}} for task, value in tasks.items()}
    return {"name": str(name), "perplexity": perplexity, "tasks": scored}


def kept(folder: Path, role: str) -> tuple[dict[tuple[str, int], float], dict[str, float]]:
    """The perplexities by text and length, and the scores by task."""
    found = report.read(folder)
    assert found is not None and found.evaluation is not None
    one = found.evaluation[role]
    texts = {(text["dataset"], text["length"]): text["perplexity"] for text in one["perplexity"]}
    return texts, {name: values["acc"] for name, values in one["tasks"].items()}


def test_what_was_measured_otherwise_stays(folder: Path) -> None:
    both = {"baseline": figures("dense", {"a": 4}, {}), "model": figures(folder, {"a": 5}, {"x": 0.5})}
    keeping.keep(both)
    keeping.keep({"model": figures(folder, {"a": 6}, {"x": 0.6, "y": 0.7})})
    keeping.keep({"model": figures(folder, {"a": 7, "b": 8}, {}, length=16)})
    assert kept(folder, "baseline") == ({("a", 8): 4}, {})
    assert kept(folder, "model") == ({("a", 8): 6, ("a", 16): 7, ("b", 16): 8}, {"x": 0.6, "y": 0.7})
    assert (folder / "README.md").read_text().count("| perplexity, a |") == 2


def test_a_dense_score_stands_only_beside_what_it_was_measured_with(folder: Path) -> None:
    keeping.keep({"baseline": figures("dense", {}, {"x": 1, "y": 1}), "model": figures(folder, {}, {"x": 0})})
    keeping.keep({"model": figures(folder, {}, {"x": 0.5})})
    assert kept(folder, "baseline") == ({}, {"y": 1})
    keeping.keep({"baseline": figures("other", {"a": 3}, {}), "model": figures(folder, {"a": 4}, {})})
    assert kept(folder, "baseline") == ({("a", 8): 3}, {})


def test_what_was_asked_for_is_not_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[str] = []

    def evaluate(names: dict[str, str], *_: Any) -> dict[str, Any]:
        rounds.append(names["model"])
        return {role: figures(name, {"builtin": 4}, {"x": 0.5}) for role, name in names.items()}

    monkeypatch.setattr(keeping.evaluation, "evaluate", evaluate)
    keeping.judge(folder, "dense", Ask(("x",)), {})
    keeping.keep({"model": figures(folder, {"a": 4}, {"y": 0.5})})
    keeping.judge(folder, "dense", Ask(("x",)), {})
    assert len(rounds) == 1
    keeping.keep({"model": figures(folder, {}, {"x": 0.4})})
    keeping.judge(folder, "dense", Ask(("x",)), {})
    assert len(rounds) == 2


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def on_disk(folder: Path, disk: Path) -> Path:
    """A pruned folder on a disk that can be full."""
    return Path(shutil.copytree(folder, disk / "out"))


def test_a_full_disk_is_one_sentence_and_leaves_report_and_card(on_disk: Path, disk: Path) -> None:
    before = state(on_disk)
    fill(disk, 0)
    for keep in (
        lambda: keeping.keep({"model": figures(on_disk, {"a": 5}, {"x": 0.5})}),
        lambda: keeping.keep_speed(on_disk, SPEED),
    ):
        with pytest.raises(JobError, match=r"cannot write .*No space left on device; ") as caught:
            keep()
        assert "\n" not in str(caught.value)
        assert state(on_disk) == before


def test_room_for_the_report_alone_changes_neither(on_disk: Path, disk: Path) -> None:
    before = state(on_disk)
    fill(disk, len(before[report.FILE]) + 5000)
    with pytest.raises(JobError, match="No space left"):
        keeping.keep({"model": figures(on_disk, {"a" * 5000: 5}, {})})
    assert state(on_disk) == before


def test_figures_are_told_before_they_are_kept(
    on_disk: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(names: dict[str, str], *_: Any) -> dict[str, Any]:
        return {role: figures(name, {"builtin": 4.25}, {"x": 0.5}) for role, name in names.items()}

    monkeypatch.setattr(keeping.evaluation, "evaluate", evaluate)
    fill(disk, 0)
    with pytest.raises(JobError, match="cannot write"):
        keeping.judge(on_disk, "dense", Ask(("x",)), {})
    told = capsys.readouterr().err
    assert told.count("perplexity on builtin  4.250") == told.count("acc 0.5000") == 2


def test_a_folder_that_nobody_may_write_is_refused_before_anything_is_measured(
    on_disk: Path, disk: Path
) -> None:
    keeping.require_ours([str(on_disk)])
    with read_only(disk):
        with pytest.raises(RequestError, match=f"^save: {on_disk} cannot be written; "):
            keeping.require_ours([str(on_disk)])
        with pytest.raises(JobError, match="Read-only file system"):
            keeping.keep({"model": figures(on_disk, {"a": 5}, {})})


def test_a_bench_is_told_before_it_is_kept(
    on_disk: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "compare", lambda *_, **__: SPEED)
    monkeypatch.setattr(bench, "rows", lambda found: [("decode", "2.0")])
    fill(disk, 0)
    for more in ([], ["--json"]):
        with pytest.raises(JobError, match="No space left"):
            app(["bench", str(on_disk), "--save", *more], standalone_mode=False)
        out = capsys.readouterr().out
        assert json.loads(out) == SPEED if more else out == "decode  2.0\n"


def test_a_calibration_text_that_is_measured_on_is_refused(
    folder: Path, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    check = keeping.require_unseen(str(checkpoints("llama")), trust=False)
    measured = tmp_path / "measured.txt"
    measured.write_text(sources.for_evaluation("builtin").text("evaluation", 2_000))
    text = {"dataset": str(measured), "samples": 4, "length": 32}
    asked = {"method": "wanda", "sparsity": 0.5}
    with pytest.raises(RequestError, match=r"[1-4] of 4 windows share text with those"):
        prune(checkpoints("llama"), asked | {"calibration": text}, out=tmp_path / "new", on_text=check)
    with pytest.raises(RequestError, match=r"[1-4] of 4 windows share text"):
        recover(folder, "reconstruct", out=tmp_path / "new", calibration=text, on_text=check)
    assert not (tmp_path / "new").exists()
    text["dataset"] = "builtin"
    prune(checkpoints("llama"), asked | {"calibration": text}, out=tmp_path / "new", on_text=check)


def test_answers_do_not_push_out_what_was_compared_before(folder: Path) -> None:
    close = [{"dataset": "t", "kl": 0.1, "top1": 0.9, "predictions": 8}]
    texts = figures(folder, {"t": 2.0}, {"piqa": 0.5}) | {"agreement": close}
    texts["comparison"] = {"perplexity": [{"dataset": "t", "ratio": 1.1}], "tasks": {"piqa": {"dense": 0.6}}}
    keeping.keep({"model": texts})
    said = {"stopped": 0.5, "answers": []}
    talks = figures(folder, {}, {}) | {
        "talk": said,
        "comparison": {"perplexity": [], "tasks": {}},
    }
    keeping.keep({"model": talks})
    kept = report.read(folder)
    assert kept is not None and kept.evaluation is not None
    model = kept.evaluation["model"]
    assert model["agreement"] == close and model["talk"] == {"stopped": 0.5}
    assert model["comparison"]["perplexity"][0]["ratio"] == 1.1 and model["comparison"]["tasks"]["piqa"]
