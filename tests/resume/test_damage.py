"""A checkpoint that is damaged, before or after, is named, and nothing of it is published."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llmprune import prune
from llmprune.checkpoint import reload, shards
from llmprune.errors import JobError
from tests.resume.children import WANDA, References, hashes, loads, require_same, require_unfinished


def damaged(model: Path, folder: Path, key: str, value: float) -> Path:
    """The model with one wrong number in the weight `key`."""
    shutil.copytree(model, folder)
    file = folder / json.loads((model / shards.INDEX).read_text())["weight_map"][key]
    tensors = load_file(file)
    tensors[key].view(-1)[3] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude"])
@pytest.mark.parametrize("allocation", ["uniform", "owl"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_weight_is_named(
    model: Path, tmp_path: Path, in_process: None, method: str, allocation: str, value: float
) -> None:
    bad = damaged(model, tmp_path / "bad", "model.layers.3.mlp.up_proj.weight", value)
    before = hashes(bad)
    out = tmp_path / "out"
    with pytest.raises(JobError, match=r"model\.layers\.3\.mlp\.up_proj holds NaN or infinity") as raised:
        prune(bad, {**WANDA, "method": method, "allocation": allocation}, out=out)
    assert "\n" not in str(raised.value)
    assert not (out / "config.json").exists()
    assert hashes(bad) == before


def test_damaged_activations_are_named(model: Path, tmp_path: Path, in_process: None) -> None:
    bad = damaged(model, tmp_path / "bad", "model.layers.2.input_layernorm.weight", float("nan"))
    with pytest.raises(JobError, match=r"activations that enter model\.layers\.2\.self_attn"):
        prune(bad, WANDA, out=tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_shard_that_cannot_be_read_is_named_before_anything_is_written(
    model: Path, tmp_path: Path, damage: str
) -> None:
    bad = Path(shutil.copytree(model, tmp_path / "bad"))
    file = sorted(bad.glob("model-*.safetensors"))[2]
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 100)
    else:
        file.unlink()
    with pytest.raises(JobError, match=rf"{file.name} is {damage}"):
        prune(bad, WANDA, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_touched(model: Path, in_process: None, tmp_path: Path) -> None:
    before = hashes(model), {path: path.stat().st_mtime_ns for path in model.iterdir()}
    for number, recipe in enumerate((WANDA, {**WANDA, "method": "sparsegpt", "allocation": "owl"})):
        prune(model, recipe, out=tmp_path / str(number))
    assert before == (hashes(model), {path: path.stat().st_mtime_ns for path in model.iterdir()})


@pytest.mark.parametrize("error", [RuntimeError("it does not load"), RuntimeError("")])
def test_a_result_that_does_not_load_is_not_published(
    model: Path, references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    out = tmp_path / "out"
    monkeypatch.setattr(reload, "check", fail)
    with pytest.raises(JobError, match="does not load as it should"):
        prune(model, WANDA, out=out)
    require_unfinished(out, model, WANDA)
    monkeypatch.setattr(reload, "check", loads)
    prune(model, WANDA, out=out, resume=True)
    require_same(out, references(WANDA)[0])
