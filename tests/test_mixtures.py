"""Every family of mixtures: weights inside experts, and whole experts, go exactly as asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmprune import prune, recover
from llmprune.errors import JobError, RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.expert_site import ExpertSite
from llmprune.model.sites.experts import WholeExpertsOfBlocks
from llmprune.model.sites.linear import LinearLayers
from llmprune.model.whole_experts import WholeExperts
from llmprune.patterns.experts import Experts
from llmprune.tensors import ops
from tests import mixtures, tiny
from tests.resume.interrupted import pruned_twice

CALIBRATION = {"samples": 4, "length": 32}
PROBE = torch.randint(0, tiny.VOCABULARY, (1, 16), generator=torch.Generator().manual_seed(1))
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


def asked(**more: Any) -> dict[str, Any]:
    return {"calibration": CALIBRATION, **more}


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor = PROBE) -> Tensor:
    return model(ids, use_cache=False).logits


def layout_of(folder: Path) -> dict[str, Any]:
    tensors = {key: t for file in folder.glob("*.safetensors") for key, t in load_file(file).items()}
    return {key: (t.dtype, t.shape) for key, t in tensors.items()}


def require_masked(family: str, folder: Path, out: Path, recipe: dict[str, Any]) -> None:
    """Every matrix has lost half of its weights; the rest, and the layout of the file, are as before."""
    report = prune(folder, recipe, out=out)
    dense, pruned = load(folder), load(out)
    assert layout_of(out) == layout_of(folder)
    assert report.reload is not None
    assert report.reload["max_abs_logit_difference"] == 0.0
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

    live = load(folder)
    prune(live, asked(method="reap", sparsity=0.25), tokenizer=AutoTokenizer.from_pretrained(folder))
    assert torch.equal(logits(live), logits(load(out)))


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


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss", "ernie4_5_moe"])
def test_the_pruned_block_is_the_dense_one_without_a_choice(
    family: str, checkpoints: tiny.Checkpoints
) -> None:
    """Scores of the experts that went are lowered in the router, by a hook on the experts themselves."""
    dense, pruned = load(checkpoints(family)), load(checkpoints(family))
    report = prune(pruned, asked(method="reap", sparsity=0.25), tokenizer=tiny.tokenizer())
    assert report.sites[0].units == ([16, 12] if family == "deepseek_v3" else [8, 6])
    assert not torch.allclose(logits(dense), logits(pruned), atol=1e-3)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "nemotron_h"])
def test_contributions_are_those_of_a_plain_loop(family: str, checkpoints: tiny.Checkpoints) -> None:
    """REAP in ten lines, on the class's own eager loop."""
    model = load(checkpoints(family))
    site = Anatomy(model, WholeExpertsOfBlocks(Experts())).sites[0]
    assert isinstance(site, WholeExperts)
    layer, seen = site.layer, []
    own = layer.forward
    layer.forward = lambda *inputs: (seen.append(inputs), own(*inputs))[1]  # type: ignore[method-assign]
    logits(model)
    del layer.forward
    x, index, weight = seen[0]
    scores = []
    for expert in range(site.units):
        rows, place = torch.where(index == expert)
        alone = torch.full_like(index[rows][:, :1], expert)
        with torch.no_grad():
            one = layer(x[rows], alone, weight[rows, place][:, None]).norm(dim=-1)
        scores.append(float(one.mean()) if len(rows) else 0.0)
    expected = ops.keep_largest(torch.tensor([scores]), 2)[0]
    prune(model, {"method": "reap", "sparsity": 0.25}, tokens=PROBE, tokenizer=tiny.tokenizer())
    kept = [torch.equal(layer.down_proj[e], d) for e in range(8) for d in site.layer.down_proj]
    assert torch.tensor(kept).reshape(8, 6).any(1).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("family", "more", "why"),
    [
        ("mixtral", {"sparsity": 0.8}, "each token goes to 3"),
        ("deepseek_v3", {"sparsity": 0.05}, "4 groups"),
        ("mixtral", {"layout": "padded"}, "leave it out|use uniform"),
        ("mixtral", {"propagation": "layer"}, "block or dense"),
        ("mixtral", {"allocation": "global"}, "cannot share out experts"),
        ("mixtral", {"method": "wanda", "pattern": "experts"}, "wanda prunes"),
        ("mixtral", {"method": "flap", "pattern": "expert_channels"}, "least_squares"),
        ("mixtral", {"method": "wanda", "pattern": "expert_channels"}, "an expert has 16 channels"),
        (
            "mixtral",
            {"method": "wanda", "pattern": {"name": "expert_channels", "multiple": 4}, "sparsity": 0.9},
            "at most 0.75 can go",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_weight_is_read(
    family: str, more: dict[str, Any], why: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=why):
        prune(
            checkpoints(family), asked(**{"method": "reap", "sparsity": 0.25, **more}), out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_a_dense_model_has_no_experts(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no experts"):
        prune(checkpoints("llama"), asked(method="reap", sparsity=0.25), out=tmp_path / "out")


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_starved_experts_see_other_tokens(method: str, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    recipe, tokens = {"method": method, "sparsity": 0.5}, torch.tensor([[5, 7]])
    report = prune(checkpoints("mixtral"), recipe, tokens=tokens, out=tmp_path / "out")
    experts = [record for record in report.sites if "experts" in record.kind]
    assert all(record.reached == 0.5 for record in experts)
    routed = [record.notes["tokens"] for record in experts if record.kind.endswith("down_proj")]
    assert sum(routed) == 2 * 2 * mixtures.CHOSEN  # two blocks, two tokens
    assert all(r.notes["topped_up"] > 0 for r in experts if r.notes["tokens"] == 0)
    assert any("too few tokens" in warning for warning in report.warnings)


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "sparsegpt", "sparsity": 0.5, "propagation": "layer"},
        {"method": "reap", "sparsity": 0.25},
        {"method": "wanda", "sparsity": 0.25, "pattern": {"name": "expert_channels", "multiple": 4}},
    ],
    ids=lambda recipe: recipe["method"] + str(recipe["sparsity"]),
)
def test_a_resumed_run_ends_with_the_same_bytes(
    recipe: dict[str, Any], family: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    pruned_twice(checkpoints(family), asked(**recipe), tmp_path)


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize("pruned_by", ["wanda", "reap"])
def test_the_dense_model_teaches_experts(
    pruned_by: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    """Zeros and sizes stay, and the file keeps its keys."""
    how = {"wanda": {"method": "wanda", "pattern": "2:4"}, "reap": {"method": "reap", "sparsity": 0.25}}
    prune(checkpoints("mixtral"), asked(**how[pruned_by]), out=tmp_path / "pruned")
    teach = {"name": "distill", "tokens": 512, "batch_tokens": 64}
    recover(tmp_path / "pruned", teach, out=tmp_path / "taught", calibration={"samples": 8})
    before, after = (load(tmp_path / name).state_dict() for name in ("pruned", "taught"))
    assert layout_of(tmp_path / "taught").keys() == layout_of(tmp_path / "pruned").keys()
    experts = [name for name in before if ".experts." in name]
    assert all(not torch.equal(before[name], after[name]) for name in experts)
    assert all(torch.equal(before[name] == 0, after[name] == 0) for name in experts)


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_masks_of_experts_are_refined(family: str, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    """Weights that come back are those that the same expert had."""
    prune(checkpoints(family), asked(method="wanda"), out=tmp_path / "pruned")
    how = {"name": "refine", "rounds": 1, "windows": 4}
    recover(tmp_path / "pruned", how, out=tmp_path / "refined", calibration={"samples": 16, "length": 32})
    folders = (checkpoints(family), tmp_path / "pruned", tmp_path / "refined")
    dense, before, after = (load(folder).state_dict() for folder in folders)
    moved = [name for name in dense if ".experts." in name and not torch.equal(before[name], after[name])]
    assert moved
    for name in moved:
        assert torch.equal(after[name], dense[name].where(after[name] != 0, 0)), name
        assert int((after[name] == 0).sum()) == int((before[name] == 0).sum())


def with_mtp(folder: Path, to: Path) -> Path:
    """A checkpoint with a block behind the last, as DeepSeek-V3 publishes it."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    stored = load_file(to / "model.safetensors")
    behind = {
        k.replace(".layers.1.", ".layers.2."): t.clone() for k, t in stored.items() if ".layers.1." in k
    }
    behind["model.layers.2.eh_proj.weight"] = torch.ones(32, 64)
    save_file(stored | behind, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return to


@pytest.mark.usefixtures("check_in_process")
@pytest.mark.parametrize(
    ("recipe", "number"),
    [
        ({"method": "wanda", "sparsity": 0.5}, 2),
        ({"pattern": {"name": "blocks", "remove": [0], "keep_ends": False}}, 1),
        ({"method": "reap", "sparsity": 0.25}, None),
    ],
)
def test_heads_for_further_tokens(
    recipe: dict[str, Any], number: int | None, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    """They stay where their sizes do, behind the last block; else they go, and the report says so."""
    report = prune(
        with_mtp(checkpoints("deepseek_v3"), tmp_path / "with"), asked(**recipe), out=tmp_path / "out"
    )
    heads = {key.split(".")[2] for key in layout_of(tmp_path / "out") if "eh_proj" in key}
    assert heads == ({str(number)} if number else set())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == int(number is not None)
    assert any("multi-token" in warning for warning in report.warnings) == (number is None)
    loaded = load(tmp_path / "out")
    assert report.totals["parameters_after"] - sum(p.numel() for p in loaded.parameters()) <= 32  # buffers


@pytest.mark.parametrize(
    ("family", "lost"), [("mixtral", ".experts.3.w1."), ("mixtral", ".experts.7."), ("gpt_oss", "")]
)
def test_a_file_with_too_few_experts_is_refused(
    family: str, lost: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    held = load_file(checkpoints(family) / "model.safetensors")
    if lost:
        held = {key: tensor for key, tensor in held.items() if lost not in key}
    else:
        held = {key: t[:-1].contiguous() if key.endswith("down_proj") else t for key, t in held.items()}
    other = tmp_path / "other"
    shutil.copytree(checkpoints(family), other)
    save_file(held, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobError, match=r"mlp\.experts\."):
        prune(other, {"method": "magnitude"}, out=tmp_path / "out")
