"""Every method that can choose whole units cuts exactly as many as asked, and leaves the others alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmprune import plugins, prune
from llmprune.checkpoint.store import Store
from llmprune.methods.base import Method
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.units import WholeUnits
from llmprune.model.unit_site import UnitSite
from llmprune.patterns.units import Units
from llmprune.recipe import Recipe
from llmprune.tensors.statistics import Nothing
from tests import tiny

METHODS = {name: plugins.find("llmprune.methods", name, Method) for name in plugins.names("llmprune.methods")}
CUTTING = [name for name, method in METHODS.items() if method.scores_alone() and "units" in method.serves]
BLIND = [name for name in CUTTING if METHODS[name].needs is Nothing]
HIDDEN, CHANNELS, GROUPS, HEAD = 32, 48, 2, 8  # of the tiny model
GROUP = 2 * HEAD  # rows of the queries that share a head of keys and values
# The share that goes, and how many groups of heads and channels stay in every block.
CASES = {
    "ffn": (0.25, GROUPS, 36),
    "attention": (0.5, 1, CHANNELS),
    "all": (0.5, 1, 24),
}


def asked(method: str, parts: str) -> dict[str, Any]:
    pattern = {"name": "units", "multiple": 4, "parts": parts}
    text = {"dataset": "builtin", "samples": 2, "length": 16}
    recipe = {"method": method, "pattern": pattern, "sparsity": CASES[parts][0], "calibration": text}
    return recipe | {"allocation": "uniform", "repair": "none"}


pytestmark = pytest.mark.usefixtures("check_in_process")


def kept(before: Tensor, after: Tensor) -> Tensor:
    """Which rows of a matrix are left, each as it was and in its order."""
    same = (after[:, None] == before[None]).all(-1)
    assert (same.sum(1) == 1).all(), "every row is one of the dense model's"
    rows = same.int().argmax(1)
    assert (rows.diff() > 0).all()
    return rows


def chosen(dense: PreTrainedModel, pruned: PreTrainedModel, block: int) -> tuple[Tensor, Tensor]:
    """The groups of heads and the channels that are left in a block; nothing else has changed in it."""
    before, after = (model.model.layers[block] for model in (dense, pruned))
    channels = kept(before.mlp.gate_proj.weight, after.mlp.gate_proj.weight)
    values = kept(before.self_attn.v_proj.weight, after.self_attn.v_proj.weight)
    groups = values[::HEAD] // HEAD
    queries = (groups[:, None] * GROUP + torch.arange(GROUP)).flatten()
    assert torch.equal(values, (groups[:, None] * HEAD + torch.arange(HEAD)).flatten())
    rows = {"mlp.up_proj": channels, "self_attn.k_proj": values, "self_attn.q_proj": queries}
    for name, left in rows.items():
        assert torch.equal(after.get_submodule(name).weight, before.get_submodule(name).weight[left])
    for name, left in {"mlp.down_proj": channels, "self_attn.o_proj": queries}.items():
        assert torch.equal(after.get_submodule(name).weight, before.get_submodule(name).weight[:, left])
    return groups, channels


@torch.no_grad()
@pytest.mark.parametrize("parts", CASES)
@pytest.mark.parametrize("method", CUTTING)
def test_exactly_as_many_units_go_as_asked(
    method: str, parts: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    report = prune(checkpoints("llama"), asked(method, parts), out=tmp_path / "out")
    share, groups, channels = CASES[parts]
    dense, pruned = map(AutoModelForCausalLM.from_pretrained, (checkpoints("llama"), tmp_path / "out"))
    blocks = len(dense.model.layers)
    for block in range(blocks):
        assert [len(left) for left in chosen(dense, pruned, block)] == [groups, channels]
    gone = (GROUPS - groups) * 3 * GROUP * HIDDEN + (CHANNELS - channels) * 3 * HIDDEN
    assert report.totals["removed_parameters"] == blocks * gone
    assert report.totals["parameters_after"] == sum(p.numel() for p in pruned.parameters())
    assert report.totals["sparsity"] == share and report.totals["zero_parameters"] == 0
    units = {CHANNELS: channels, GROUPS: groups}
    assert all(site.units == [site.units[0], units[site.units[0]]] for site in report.sites if site.units)
    assert len(report.sites) == blocks * (2 if parts == "all" else 1)


@torch.no_grad()
@pytest.mark.parametrize("method", BLIND)
def test_the_units_that_score_highest_stay(
    method: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    recipe = Recipe.parse(asked(method, "ffn"))
    prune(checkpoints("llama"), recipe, out=tmp_path / "out")
    dense, pruned = map(AutoModelForCausalLM.from_pretrained, (checkpoints("llama"), tmp_path / "out"))
    anatomy = Anatomy(dense, WholeUnits(Units(parts="ffn")))
    for site in anatomy.sites:
        assert isinstance(site, UnitSite)
        score = recipe.method.score(Store(anatomy).weights(site), Nothing(site.inputs))
        keep = recipe.pattern.keep(score, recipe.sparsity, site.units)
        assert torch.equal(chosen(dense, pruned, site.block)[1], keep.nonzero()[:, 0])
