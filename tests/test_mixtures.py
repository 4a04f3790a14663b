"""Every family of mixtures: weights inside experts, and whole experts, go exactly as asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from llmprune import prune
from llmprune.checkpoint import opened
from llmprune.model.anatomy import Anatomy
from llmprune.model.expert_site import ExpertSite
from llmprune.model.sites.experts import WholeExpertsOfBlocks
from llmprune.model.sites.linear import LinearLayers
from llmprune.model.whole_experts import WholeExperts
from llmprune.patterns.experts import Experts
from tests import mixtures, tiny
from tests.mixtures import PROBE, asked, layout_of, load, logits

SLOW = {"kimi_linear"}  # its kernel takes ten seconds on a CPU
GROUPED = [name for name, own in mixtures.FAMILIES.items() if own.get("n_group", 1) not in (1, None)]
# Identical experts add up to the same, however many there are, where their weights are normalised.
NORMALISED = ("mixtral", "gpt_oss", "granitemoe", "glm4_moe", "minimax_m2", "ernie4_5_moe", "lfm2_moe")
PRODUCT = {
    f"{method}-{pattern}-{propagation}": {"method": method, "pattern": pattern, "propagation": propagation}
    for method in ("wanda", "sparsegpt", "magnitude", "admm")
    for pattern in ("unstructured", "2:4")
    for propagation in ("dense", "block", "layer")
}
FEW = ("wanda-2:4-dense", "sparsegpt-unstructured-layer")


def families() -> list[Any]:
    marked = {name: [pytest.mark.slow] for name in SLOW}
    return [pytest.param(name, marks=marked.get(name, [])) for name in mixtures.FAMILIES]


@torch.no_grad()
def of_alignment(model: PreTrainedModel) -> float:
    """What changes of a loaded model's logits once its weights lie as in the run that pruned it.

    transformers' grouped kernel sums in another order where weights do not begin at a multiple of 16 bytes,
    as in a file.
    """
    length = min(opened.PROBE, model.config.max_position_embeddings)
    ids = torch.randint(0, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    loaded = model(ids).logits
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return float((model(ids).logits - loaded).abs().max())


def require_masked(family: str, folder: Path, out: Path, recipe: dict[str, Any]) -> None:
    """Every matrix has lost half of its weights; the rest, and the layout of the file, are as before."""
    report = prune(folder, recipe, out=out)
    dense, pruned = load(folder), load(out)
    assert layout_of(out) == layout_of(folder)
    assert report.reload is not None
    difference = report.reload["max_abs_logit_difference"]
    assert difference == 0.0 or difference == of_alignment(pruned)
    sites = Anatomy(pruned, LinearLayers()).sites
    assert any(isinstance(site, ExpertSite) for site in sites)
    for site in sites:
        gone = site.matrix(site.weight) == 0
        assert int(gone.sum()) == round(0.5 * site.weights), site.name
        if recipe["pattern"] == "2:4":
            assert (gone.reshape(-1, 4).sum(1) == 2).all(), site.name
    touched = {site.key for site in sites}
    before, after = dense.state_dict(), pruned.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name not in touched)
    if recipe["method"] in ("wanda", "magnitude"):
        assert all(torch.equal(after[name], before[name].where(after[name] != 0, 0)) for name in touched)
    prune(dense, recipe, tokenizer=AutoTokenizer.from_pretrained(folder))
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, after[name]), f"{name} differs from pruning in memory"


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize("family", families())
def test_weights_inside_experts_go(family: str, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    which = FEW[list(mixtures.FAMILIES).index(family) % 2]
    require_masked(family, checkpoints(family), tmp_path / "out", asked(**PRODUCT[which]))


@pytest.mark.slow
@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize("which", PRODUCT)
@pytest.mark.parametrize("family", [name for name in mixtures.FAMILIES if name not in SLOW])
def test_many_methods_patterns_and_propagations(
    family: str, which: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    require_masked(family, checkpoints(family), tmp_path / "out", asked(**PRODUCT[which]))


def kept_experts(site: WholeExperts, pruned: PreTrainedModel) -> list[int]:
    """The experts of a dense block that a pruned model still has."""
    now = pruned.get_submodule(site.path).down_proj
    return [e for e, was in enumerate(site.layer.get_parameter("down_proj")) if any(map(was.equal, now))]


@contextmanager
def masked(dense: PreTrainedModel, pruned: PreTrainedModel) -> Iterator[list[str]]:
    """Let no router of the dense model choose what the pruned one lacks; yields the routers that were asked.

    Wherever a matrix with a row for each expert is applied, the scores of those that went become -inf before
    anything is done with them; correction biases, too.
    """
    gone: dict[int, tuple[str, list[int]]] = {}
    seen: list[str] = []
    for site in Anatomy(dense, WholeExpertsOfBlocks(Experts())).sites:
        assert isinstance(site, WholeExperts)
        kept = kept_experts(site, pruned)
        lost = [expert for expert in range(site.units) if expert not in kept]
        block = dense.get_submodule(site.path.rpartition(f".{site.block}.")[0])[site.block]
        for name, axis in site.axes.items():
            tensor = block.state_dict()[name]
            if name.endswith("weight") and tensor.ndim == 2:
                gone[tensor.data_ptr()] = name, lost
            elif "correction" in name or name.endswith("expert_bias"):
                tensor.index_fill_(axis, torch.tensor(lost, dtype=torch.int64), -torch.inf)

    def scored(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found = linear(x, weight, bias)
        if weight.data_ptr() in gone:
            name, lost = gone[weight.data_ptr()]
            seen.append(name)
            found = found.index_fill(-1, torch.tensor(lost, dtype=torch.int64), -torch.inf)
        return found

    linear = torch.nn.functional.linear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", scored)
        yield seen


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize("family", families())
def test_whole_experts_go(family: str, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    """The loaded model computes as the dense one whose routers cannot choose what went."""
    folder, out = checkpoints(family), tmp_path / "out"
    report = prune(folder, asked(method="reap", sparsity=0.25), out=out)
    assert report.reload is not None
    assert report.reload["max_abs_logit_difference"] == 0.0
    assert {record.kind for record in report.sites} == {"experts"}
    config, before = (json.loads((place / "config.json").read_text()) for place in (out, folder))
    assert config.pop("llmprune")["pattern"] == "experts"
    changed = {name for name in config if config[name] != before.get(name)}
    assert changed
    assert changed <= {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}
    stored, dense = layout_of(out), layout_of(folder)
    assert stored.keys() <= dense.keys()
    sizes = [sum(t.numel() for t in load(place).state_dict().values()) for place in (folder, out)]
    assert report.totals["removed_parameters"] == sizes[0] - sizes[1]

    pruned, dense, live = load(out), load(folder), load(folder)
    assert not torch.allclose(logits(dense), logits(pruned), atol=1e-3)
    with masked(dense, pruned) as routers:
        torch.testing.assert_close(logits(dense), logits(pruned), atol=1e-5, rtol=0)
    assert len(routers) >= len(report.sites)
    prune(live, asked(method="reap", sparsity=0.25), tokenizer=AutoTokenizer.from_pretrained(folder))
    assert torch.equal(logits(live), logits(pruned))


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize("family", families())
def test_channels_inside_experts_go(family: str, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    """Each expert chooses its own; what is cut computes as it did with zeros in its place."""
    folder, out = checkpoints(family), tmp_path / "out"
    recipe = asked(method="wanda", pattern={"name": "expert_channels", "multiple": 4}, sparsity=0.25)
    report = prune(folder, recipe, out=out)
    assert report.reload is not None
    assert report.reload["max_abs_logit_difference"] <= 1e-5
    assert all(record.reached == 0.25 for record in report.sites)
    before, after = (load(place).state_dict() for place in (folder, out))
    sizes = [sum(t.numel() for t in state.values()) for state in (before, after)]
    assert report.totals["removed_parameters"] == sizes[0] - sizes[1]
    config, was = (json.loads((place / "config.json").read_text()) for place in (out, folder))
    config.pop("llmprune")
    assert {name for name in config if config[name] != was.get(name)} <= {
        "moe_intermediate_size",
        "intermediate_size",
    }
    live = load(folder)
    prune(live, recipe, tokenizer=AutoTokenizer.from_pretrained(folder))
    torch.testing.assert_close(logits(live), logits(load(out)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", GROUPED)
def test_a_later_token_leaves_earlier_logits_alone(
    family: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    """A number of experts that the groups do not divide would mix tokens up, without an error."""
    model = load(checkpoints(family))
    prune(model, asked(method="reap", sparsity=0.25), tokenizer=tiny.tokenizer())
    other = PROBE.clone()
    other[0, -1] = (other[0, -1] + 1) % tiny.VOCABULARY
    torch.testing.assert_close(logits(model)[:, :-1], logits(model, other)[:, :-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", NORMALISED)
def test_removing_copies_of_experts_changes_nothing(family: str, checkpoints: tiny.Checkpoints) -> None:
    model = load(checkpoints(family))
    kind = WholeExpertsOfBlocks(Experts())
    for site in Anatomy(model, kind).sites:
        for parameter in site.layer.parameters():
            parameter.data.copy_(parameter.data[:1].expand_as(parameter).clone())
    before = logits(model)
    prune(model, asked(method="random", pattern="experts", sparsity=0.5), tokenizer=tiny.tokenizer())
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
