"""What recovering asks of its two models, and what it refuses before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmprune import prune, recover
from llmprune.checkpoint import source
from llmprune.checkpoint.opened import Opened
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError
from tests import tiny
from tests.recovery.test_reconstruct import PRUNED

pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture
def pruned(checkpoints: tiny.Checkpoints, tmp_path: Path) -> Path:
    """A small pruned checkpoint, calibrated on 4 windows."""
    asked = PRUNED["2:4"] | {"calibration": {"samples": 4, "length": 16}}
    prune(checkpoints("llama"), asked, out=tmp_path / "out")
    return tmp_path / "out"


def test_text_of_its_own_is_written_by_the_dense_model(
    pruned: Path, checkpoints: tiny.Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote: list[str] = []
    whole = Opened.whole

    def noted(self: Opened) -> Any:
        assert self.source is not None
        wrote.append(self.source.name)
        return whole(self)

    monkeypatch.setattr(Opened, "whole", noted)
    recover(pruned, "reconstruct", calibration={"dataset": "self"})
    assert wrote == [str(checkpoints("llama"))]


@pytest.mark.parametrize("dataset", ["builtin", "synthetic"])
def test_a_report_with_options_that_do_not_apply_is_recovered(dataset: str, pruned: Path) -> None:
    """Recipes used to hold the options of every source."""
    file = pruned / "llmprune_report.json"
    report = json.loads(file.read_text())
    others = {"text_column": "text", "subset": None, "split": "train", "temperature": 1.0, "redraws": 0}
    report["recipe"]["calibration"] |= others
    file.write_text(json.dumps(report))
    done = recover(pruned, "reconstruct", calibration={"dataset": dataset})
    assert done.recovery is not None and done.recovery["calibration"]["dataset"] == dataset
    with pytest.raises(
        RequestError, match=r"^calibration\.temperature: there is no such option for the text"
    ):
        recover(pruned, "reconstruct", calibration={"dataset": dataset, "temperature": 1.0})


def test_the_dense_model_is_looked_for_at_its_revision(
    pruned: Path, checkpoints: tiny.Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pruned / "llmprune_report.json"
    report = json.loads(file.read_text())
    report["model"] |= {"source": "org/base", "revision": "a" * 40}
    file.write_text(json.dumps(report))
    asked: list[tuple[str, str | None]] = []

    def on_hub(repo: str, revision: str | None, trust: bool) -> Source:
        asked.append((repo, revision))
        return Source(repo, checkpoints("llama"))

    monkeypatch.setattr(source, "_on_hub", on_hub)
    recover(pruned, "reconstruct")
    assert asked == [("org/base", "a" * 40)]


@pytest.mark.parametrize("name", [".", "blocks/.."])
def test_a_folder_may_be_called_by_where_one_is(
    name: str, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pruned / "blocks").mkdir()
    monkeypatch.chdir(pruned)
    recover(name, "reconstruct")
    assert (pruned.parent / "out-recovered" / "config.json").is_file()


def test_a_recipe_with_a_recovery_may_write_to_where_one_is(
    checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    asked = PRUNED["2:4"] | {"calibration": {"samples": 4, "length": 16}, "recovery": "reconstruct"}
    prune(checkpoints("llama"), asked, out=".")
    assert (tmp_path / "here" / "config.json").is_file()
    assert (tmp_path / "here-pruned" / "config.json").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calibration": {"samples": 0}}, r"calibration\.samples: input should be greater .* \(found 0\)"),
        ({"calibration": {"length": 1}}, r"calibration\.length: input should be greater .* \(found 1\)"),
        ({"calibration": {"size": 1}}, r"calibration\.size: there is no such option"),
        ({"tokens": torch.arange(32)}, r"tokens: windows \[N, L\] are needed, and the shape is \[32\]"),
        ({"foo": 1}, "foo: there is no such option; there are device, device_map, "),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(options: dict[str, Any], said: str, pruned: Path) -> None:
    with pytest.raises(RequestError, match=f"^{said}"):
        recover(pruned, "reconstruct", **options)
    assert not pruned.with_name("out-recovered").exists()


OTHERS: dict[str, dict[str, Any]] = {
    "depth 3, and .* has 2": {"num_hidden_layers": 2},
    "hidden size 32, and .* has 64": {"hidden_size": 64, "head_dim": 8},
    "vocabulary 128, and .* has 144": {"vocab_size": 144},
    "family llama, and .* has qwen2": {"model_type": "qwen2"},
}


@pytest.mark.parametrize("how", ["reconstruct", "lora"])
@pytest.mark.parametrize("said", OTHERS)
def test_a_dense_model_of_another_shape_is_refused(
    said: str, how: str, pruned: Path, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoints("llama"), tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | OTHERS[said]))
    with pytest.raises(RequestError, match=f"^baseline: the pruned model has the {said}; name the model"):
        recover(pruned, how, baseline=str(other))
    assert not pruned.with_name("out-recovered").exists()


def test_another_finished_folder_is_not_taken_for_the_result(
    pruned: Path, checkpoints: tiny.Checkpoints
) -> None:
    done = recover(pruned, "reconstruct")
    out = pruned.with_name("out-recovered")
    again = shutil.copytree(pruned, pruned.with_name("again"))
    assert recover(pruned, "reconstruct", resume=True) == done
    assert recover(pruned, "reconstruct", baseline=str(checkpoints("llama")), resume=True) == done
    for what, model, how, where, options in (
        ("recovery", pruned, "lora", out, {}),
        ("recovery", pruned, {"name": "reconstruct", "ridge": 0.5}, out, {}),
        ("recovery", pruned, "reconstruct", again, {}),
        ("model", again, "reconstruct", out, {}),
        ("calibration", pruned, "reconstruct", out, {"calibration": {"samples": 3}}),
        ("dense model", pruned, "reconstruct", out, {"baseline": str(again)}),
    ):
        with pytest.raises(RequestError, match=f"^resume: {where} was finished with another {what}; choose"):
            recover(model, how, out=where, resume=True, **options)
    shutil.rmtree(pruned)
    asked = PRUNED["2:4"] | {"method": "magnitude"}
    prune(checkpoints("llama"), asked, out=pruned)
    text = {"samples": 4, "length": 16}
    with pytest.raises(RequestError, match="was finished with another pruning"):
        recover(pruned, "reconstruct", calibration=text, resume=True)
