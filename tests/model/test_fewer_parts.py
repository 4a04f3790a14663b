"""A model without a block's attention, or feed-forward network, is the dense model whose part adds zero."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.families import FAMILIES
from llmprune.model.sites.linear import LinearLayers
from tests import tiny
from tests.model.test_fewer_blocks import TEXT, generated
from tests.test_families import PROBE

PARTS = ("attention", "ffn")
COMPARE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert "llmprune" not in sys.modules
ids = torch.tensor([[5, 9, 3, 17, 40, 8, 2, 11]])
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[2])
    told = [model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)]
assert torch.equal(*told)
"""


pytestmark = pytest.mark.usefixtures("check_in_process")


def listed(part: str, *blocks: int) -> dict[str, Any]:
    return {"pattern": {"name": "blocks", "parts": part, "remove": list(blocks), "keep_ends": False}}


def zeros(_: Any, __: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def adding_zero(folder: Path, part: str, *blocks: int) -> PreTrainedModel:
    """The dense model, in which what the part's output layer adds is zero."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    anatomy = Anatomy(model, LinearLayers())
    for block in blocks:
        consumer = getattr(FAMILIES[anatomy.family], part).consumer
        anatomy.blocks[block].get_submodule(consumer).register_forward_hook(zeros)
    return model


@torch.no_grad()
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", tiny.CUT)
def test_the_result_is_the_dense_model_to_which_the_part_adds_zero(
    family: str, part: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    folder, out = checkpoints(family), tmp_path / "out"
    report = prune(folder, listed(part, 0, 1), out=out)
    pruned = AutoModelForCausalLM.from_pretrained(out).eval()
    expected = adding_zero(folder, part, 0, 1)(PROBE, use_cache=False).logits
    assert torch.equal(pruned(PROBE, use_cache=False).logits, expected)
    assert torch.equal(generated(pruned, cached=True), generated(pruned, cached=False))
    before, after = adding_zero(folder, part).num_parameters(), pruned.num_parameters()
    assert before - after == report.totals["removed_parameters"] > 0


@torch.no_grad()
def test_plain_transformers_loads_it(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    folder, out = checkpoints("gemma2"), tmp_path / "out"
    prune(folder, listed("attention", 1), out=out)
    shutil.copytree(out, tmp_path / "elsewhere")
    done = subprocess.run(
        [sys.executable, "-I", "-c", COMPARE, str(tmp_path / "elsewhere"), str(tmp_path / "logits.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = adding_zero(folder, "attention", 1)(torch.tensor([[5, 9, 3, 17, 40, 8, 2, 11]])).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


@torch.no_grad()
def test_a_model_in_memory_loses_the_same_part(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    folder = checkpoints("gemma2")
    live = AutoModelForCausalLM.from_pretrained(folder).eval()
    prune(live, listed("ffn", 1))
    prune(folder, listed("ffn", 1), out=tmp_path / "out")
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(live(PROBE).logits, pruned(PROBE).logits)
    live.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["per_layer_config"]["1"]["skip"]


CHANNELS: dict[str, Any] = {"name": "units", "multiple": 8, "parts": "ffn"}
AFFINE = {"method": "flap", "repair": "affine", "calibration": TEXT}
LATER: dict[str, dict[str, Any]] = {
    "masks": {"method": "magnitude", "sparsity": 0.5},
    "units": {"method": "row_norm", "sparsity": 0.3, "pattern": CHANNELS, "layout": "per_layer"},
    "biases": {
        "method": "flap",
        "sparsity": 0.3,
        "pattern": CHANNELS,
        "repair": "affine",
        "calibration": TEXT,
    },
    "the other part": listed("attention", 0, 1),
    "a block": {"pattern": {"name": "blocks", "remove": [0], "keep_ends": False}},
}


@torch.no_grad()
@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_what_an_earlier_pruning_removed_stays_away(
    family: str, later: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints(family), listed("ffn", 0, 1), out=tmp_path / "once")
    report = prune(tmp_path / "once", LATER[later], out=tmp_path / "twice")
    assert report.reload is not None
    assert report.reload["max_abs_logit_difference"] <= 1e-5
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "twice").eval()
    assert torch.equal(generated(pruned, cached=True), generated(pruned, cached=False))
    skips = json.loads((tmp_path / "twice" / "config.json").read_text())["per_layer_config"]
    left = ["0"] if later == "a block" else ["0", "1"]
    for block in left:
        assert set(skips[block]["skip"]) >= set(FAMILIES[family].ffn.modules)


@torch.no_grad()
def states(folder: Path, part: str) -> tuple[list[Tensor], list[Tensor]]:
    """What leaves each block of the dense model, and what would leave it without the part."""
    model = adding_zero(folder, part)
    model.model.norm = torch.nn.Identity()
    outputs = model(PROBE, output_hidden_states=True).hidden_states
    without = []
    for block in range(3):
        other = adding_zero(folder, part, block)
        other.model.norm = torch.nn.Identity()
        without.append(other(PROBE, output_hidden_states=True).hidden_states[block + 1])
    return list(outputs[1:]), without


@pytest.mark.parametrize("part", PARTS)
def test_shortgpt_compares_outputs_without_and_with_the_part(
    part: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    pairs = zip(*states(folder, part), strict=True)
    influence = [float(1 - torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairs]
    pattern = {"name": "blocks", "parts": part, "keep_ends": False}
    for criterion in ("shortgpt", "angular"):  # of one block, both are the same angle
        asked = {"method": criterion, "pattern": pattern, "sparsity": 0.34}
        report = prune(folder, asked, tokens=PROBE, out=tmp_path / criterion)
        (gone,) = (site.block for site in report.sites if site.reached)
        assert gone == influence.index(min(influence))


@torch.no_grad()
def divergence(folder: Path, part: str, *blocks: int) -> float:
    models = adding_zero(folder, part), adding_zero(folder, part, *blocks)
    dense, other = (model(PROBE).logits[:, :-1].double().log_softmax(-1) for model in models)
    return float((dense.exp() * (dense - other)).sum(-1).mean())


@pytest.mark.parametrize("part", PARTS)
def test_sleb_removes_what_costs_least_after_each_removal(
    part: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    first = min(range(3), key=lambda block: divergence(folder, part, block))
    second = min({0, 1, 2} - {first}, key=lambda block: divergence(folder, part, first, block))
    pattern = {"name": "blocks", "parts": part, "keep_ends": False}
    report = prune(
        folder, {"method": "sleb", "pattern": pattern, "sparsity": 0.67}, tokens=PROBE, out=tmp_path / "out"
    )
    assert {site.block for site in report.sites if site.reached} == {first, second}


@pytest.mark.parametrize(
    ("family", "more", "said"),
    [
        ("llama", {"layout": "padded"}, "use per_layer"),
        ("llama", {"repair": "span"}, "span refits the block before removed blocks"),
        ("bloom", {}, "the channels of 'bloom' models are not known"),
    ],
)
def test_what_does_not_go_with_parts_is_refused(
    family: str, more: dict[str, Any], said: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=said):
        prune(checkpoints(family), {"calibration": TEXT, **listed("ffn", 1), **more}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_that_is_gone_cannot_go_again(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), listed("ffn", 1), out=tmp_path / "once")
    with pytest.raises(RequestError, match="block 1 has no ffn any more"):
        prune(tmp_path / "once", listed("ffn", 1), out=tmp_path / "twice")
    units = {"method": "row_norm", "sparsity": 0.3, "pattern": "units", "layout": "uniform"}
    with pytest.raises(RequestError, match="removed mlp of block 1; use per_layer"):
        prune(tmp_path / "once", units, out=tmp_path / "twice")
