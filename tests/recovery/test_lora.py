"""Adapters learn from the dense model, follow the blocks' influence, and leave sizes and zeros alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmprune import prune, recover
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.training.adapters import attach, merge
from tests import tiny
from tests.recovery.test_reconstruct import PADDED, PRUNED, tensors

HOW = {"name": "lora", "epochs": 6, "learning_rate": 1e-2, "rank": 4}


pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.mark.parametrize("pruned", ["units with biases", "2:4", "padded"])
def test_the_loss_falls_and_sizes_and_zeros_stay(
    pruned: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    asked = {**PRUNED, "padded": PADDED}[pruned] | {"calibration": {"samples": 16, "length": 32}}
    prune(checkpoints("llama"), asked, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW)
    assert report.recovery is not None
    looks, ranks = report.recovery["held_out"], report.recovery["ranks"]
    assert len(report.recovery["losses"]) == 6 * 14 // 2
    assert min(look["loss"] for look in looks) < looks[0]["loss"]
    assert len(ranks) == 3
    assert min(ranks) >= 1
    before, after = tensors(tmp_path / "out"), tensors(tmp_path / "out-recovered")
    assert {k: t.shape for k, t in before.items()} == {k: t.shape for k, t in after.items()}
    if pruned in ("2:4", "padded"):
        assert all(((t == 0) <= (after[key] == 0)).all() for key, t in before.items() if t.ndim == 2)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out-recovered")


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo"])
def test_the_merged_model_is_the_adapted_one_and_keeps_its_zeros(
    family: str, checkpoints: tiny.Checkpoints
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints(family)).eval()
    sites = Anatomy(model, LinearLayers()).sites
    for site in sites:
        site.weight[site.weight.abs() < site.weight.abs().median()] = 0
    zeros = [site.weight == 0 for site in sites]
    attach(model, sites, [2] * 3, 2.0, torch.float32, seed=0)
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"A", "B"}
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        adapted = model(ids).logits
        merge(model)
        assert torch.equal(model(ids).logits, adapted)
    for site, zero in zip(Anatomy(model, LinearLayers()).sites, zeros, strict=True):
        assert ((site.weight == 0) == zero).all()


def test_outside_training_adapters_are_rounded_as_the_checkpoint_is(checkpoints: tiny.Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    attach(model, Anatomy(model, LinearLayers()).sites, [2] * 3, 2.0, torch.bfloat16, seed=0)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, weight.bfloat16().float())


def test_adapters_may_learn_from_the_text(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    asked = PRUNED["2:4"] | {"calibration": {"samples": 8, "length": 32}}
    prune(checkpoints("olmo"), asked, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW | {"loss": "text"})
    assert report.recovery is not None and report.recovery["loss"] == "text"
    assert report.recovery["held_out"][0]["loss"] > 4  # nats a token of a model that knows nothing
