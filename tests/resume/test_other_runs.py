"""Only the same run is gone on with, and a finished folder stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from llmprune import prune
from llmprune.checkpoint import draft, shards, versions
from llmprune.checkpoint.draft import WORK
from llmprune.errors import JobError, RequestError
from llmprune.report import Report
from tests.resume.children import TEXT, WANDA, References, hashes

CHANGES: dict[str, dict[str, Any]] = {
    "method": {"method": "magnitude"},
    "sparsity": {"sparsity": 0.6},
    "pattern": {"pattern": "2:4"},
    "allocation": {"allocation": "erk"},
    "propagation": {"propagation": "block"},
    "seed": {"calibration": {**TEXT, "seed": 1}},
    "samples": {"calibration": {**TEXT, "samples": 5}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_recipe_does_not_go_on(
    begun: Path, model: Path, in_process: None, change: dict[str, Any]
) -> None:
    before = hashes(begun)
    with pytest.raises(RequestError, match="was begun with another recipe") as raised:
        prune(model, {**WANDA, **change}, out=begun, resume=True)
    assert raised.value.field == "resume"
    assert "\n" not in str(raised.value)
    assert hashes(begun) == before


@pytest.mark.parametrize("change", ["sparsity", "seed"])
def test_what_differs_is_told_with_both_values(
    begun: Path, model: Path, in_process: None, change: str
) -> None:
    with pytest.raises(RequestError, match=change):
        prune(model, {**WANDA, **CHANGES[change]}, out=begun, resume=True)


def test_another_dtype_does_not_go_on(begun: Path, model: Path, in_process: None) -> None:
    with pytest.raises(RequestError, match=r"another dtype \(\"float32\", now \"bfloat16\"\)"):
        prune(model, WANDA, out=begun, resume=True, dtype="bfloat16")


def test_another_model_does_not_go_on(begun: Path, model: Path, in_process: None, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    with pytest.raises(RequestError, match="was begun with another model"):
        prune(other, WANDA, out=begun, resume=True)


def test_other_weights_do_not_go_on(
    begun: Path, model: Path, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sorted(model.glob("*.safetensors"))[0]
    own = shards.sha256
    monkeypatch.setattr(shards, "sha256", lambda f: "0" * 64 if f.name == file.name else own(f))
    with pytest.raises(RequestError, match="was begun with another weights") as raised:
        prune(model, WANDA, out=begun, resume=True)
    assert file.name in str(raised.value)


def test_other_versions_do_not_go_on(
    begun: Path, model: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = versions.installed()
    monkeypatch.setattr(versions, "installed", lambda: {**known, "torch": "1.0"})
    with pytest.raises(RequestError, match="was begun with another versions"):
        prune(model, WANDA, out=begun, resume=True)


def test_a_shard_that_is_gone_is_one_sentence(
    begun: Path, model: Path, in_process: None, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(begun, tmp_path / "out"))
    (out / WORK / "model-00001-of-00007.safetensors").unlink()
    with pytest.raises(JobError, match="model-00001-of-00007"):
        prune(model, WANDA, out=out, resume=True)
    assert not (out / "config.json").exists()


def test_a_finished_folder_is_left_as_it_is(
    references: References, model: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = references(WANDA)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    report = prune(model, WANDA, out=out, resume=True)
    assert isinstance(report, Report)
    assert report.totals["sparsity"] == 0.5
    assert "is finished already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_folder_is_not_taken_for_another_recipe(
    references: References, model: Path, in_process: None, change: str
) -> None:
    out, _ = references(WANDA)
    before = hashes(out)
    with pytest.raises(RequestError, match="was finished with another") as raised:
        prune(model, {**WANDA, **CHANGES[change]}, out=out, resume=True)
    assert raised.value.field == "resume"
    assert hashes(out) == before


def test_a_finished_folder_is_not_taken_for_another_model(
    references: References, model: Path, in_process: None, tmp_path: Path
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    with pytest.raises(RequestError, match="another model"):
        prune(other, WANDA, out=references(WANDA)[0], resume=True)


def test_a_finished_folder_is_not_written_over(references: References, model: Path) -> None:
    with pytest.raises(RequestError, match="is not empty; name a folder") as raised:
        prune(model, WANDA, out=references(WANDA)[0])
    assert raised.value.field == "out"


def test_a_stranger_in_the_folder_is_left_alone(model: Path, begun: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(begun, tmp_path / "out"))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"holds notes\.txt, which no run of llmprune left there"):
        prune(model, WANDA, out=out, resume=True)
    assert draft.is_unfinished(out)
    assert (out / "notes.txt").read_text() == "mine"
