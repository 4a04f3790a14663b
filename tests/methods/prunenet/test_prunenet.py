"""A policy is learned once, for any family, kept beside the pruned model, and serves other sparsities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.methods.prunenet import training
from llmprune.run.learned import FILE
from tests import tiny
from tests.resume.interrupted import interrupted

QUICK = {"name": "prunenet", "passes": 1, "steps": 2, "draws": 2}
TEXT = {"samples": 2, "length": 16}


pytestmark = pytest.mark.usefixtures("check_in_process")


def asked(sparsity: float = 0.5, parts: str = "ffn", **method: Any) -> dict[str, Any]:
    pattern = {"name": "units", "parts": parts, "multiple": 8}
    return {"method": QUICK | method, "sparsity": sparsity, "pattern": pattern, "calibration": TEXT}


@pytest.mark.parametrize("family", tiny.CUT)
def test_a_policy_is_learned_for_every_family_that_can_be_cut(
    family: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    report = prune(checkpoints(family), asked(), out=tmp_path / "out")
    assert report.learned is not None and list(report.learned["shapes"]) == ["ffn"]
    assert report.totals["sparsity"] == pytest.approx(0.5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert sum(p.numel() for p in model.parameters()) == report.totals["parameters_after"]


def test_heads_have_a_policy_of_their_own(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    report = prune(checkpoints("llama"), asked(parts="all"), out=tmp_path / "out")
    assert report.learned is not None and sorted(report.learned["shapes"]) == ["attention", "ffn"]
    assert {site.units[1] < site.units[0] for site in report.sites if site.units} == {True}


def test_a_policy_serves_another_sparsity_without_training(
    checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prune(checkpoints("llama"), asked(0.5), out=tmp_path / "first")
    trained_there = prune(checkpoints("llama"), asked(0.25), out=tmp_path / "trained")
    monkeypatch.setattr(training, "trained", lambda *_: pytest.fail("a policy was trained"))
    policy = str(tmp_path / "first" / FILE)
    again = prune(checkpoints("llama"), asked(0.25, policy=policy), out=tmp_path / "again")
    assert again.learned == first.learned | {"file": policy}
    assert [s.error for s in again.sites] == [s.error for s in trained_there.sites]
    for file in ("model-00001-of-00004.safetensors", FILE):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "trained" / file).read_bytes()


def test_the_same_seed_gives_the_same_policy(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prune(checkpoints("qwen2"), asked(seed=seed), out=tmp_path / name)
    policies = {name: (tmp_path / name / FILE).read_bytes() for name in "abc"}
    assert policies["a"] == policies["b"] != policies["c"]


def test_a_run_that_was_cut_off_goes_on_with_what_it_learned(
    checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(checkpoints("llama"), asked(), out=tmp_path / "whole")
    with interrupted(after=1):
        prune(checkpoints("llama"), asked(), out=tmp_path / "cut")
    monkeypatch.setattr(training, "trained", lambda *_: pytest.fail("a policy was trained"))
    prune(checkpoints("llama"), asked(), out=tmp_path / "cut", resume=True)
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes()


def test_what_was_pruned_by_a_policy_learns_another(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), asked(0.25), out=tmp_path / "once")
    again = prune(tmp_path / "once", asked(0.25), out=tmp_path / "twice")
    assert again.learned is not None
    about = json.loads((tmp_path / "twice" / "policy.json").read_text())
    assert about["shapes"] == again.learned["shapes"]
    prune(tmp_path / "once", asked(0.25) | {"method": "random"}, out=tmp_path / "plain")
    assert not (tmp_path / "plain" / "policy.json").exists()


def test_a_policy_for_channels_alone_is_not_asked_about_heads(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), asked(), out=tmp_path / "ffn")
    policy = str(tmp_path / "ffn" / FILE)
    with pytest.raises(RequestError, match="is for ffn only"):
        prune(checkpoints("llama"), asked(parts="all", policy=policy), out=tmp_path / "out")


def test_a_policy_that_does_not_fit_is_refused_with_both_shapes(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), asked(), out=tmp_path / "llama")
    policy = str(tmp_path / "llama" / FILE)
    with pytest.raises(RequestError) as refusal:
        prune(checkpoints("gpt2"), asked(policy=policy), out=tmp_path / "out")
    about = json.loads(Path(policy).with_suffix(".json").read_text())
    assert str(about["shapes"]["ffn"]) in str(refusal.value)
    assert "'factors': 1" in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "no json", "garbage", "another's"])
def test_what_is_no_policy_is_refused(
    damage: str, checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "policy.safetensors"
    about = {"shapes": {"ffn": {"outputs": 32, "inputs": 64, "units": 64, "factors": 2}}}
    if damage != "no json":
        file.with_suffix(".json").write_text("{" if damage == "garbage" else json.dumps(about))
    if damage != "missing":
        weights = checkpoints("llama") / "model.safetensors"
        file.write_bytes(weights.read_bytes())
        assert load_file(file)
    monkeypatch.setattr("llmprune.pruning.windows", lambda *_: pytest.fail("a text was prepared"))
    with pytest.raises(RequestError, match=r"^policy: "):
        prune(checkpoints("llama"), asked(policy=str(file)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_in_memory_learns_too(checkpoints: tiny.Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama"))
    before = sum(p.numel() for p in model.parameters())
    tokens = torch.randint(0, tiny.VOCABULARY, (2, 16))
    report = prune(model, asked(), tokens=tokens)
    assert report.learned is not None
    assert sum(p.numel() for p in model.parameters()) < before
