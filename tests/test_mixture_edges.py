"""What mixtures have that others lack: starved experts, counts that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmprune import prune, recover
from llmprune.errors import JobError, RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.experts import WholeExpertsOfBlocks
from llmprune.model.whole_experts import WholeExperts
from llmprune.patterns.experts import Experts
from llmprune.tensors import ops
from tests import mixtures, tiny
from tests.mixtures import PROBE, asked, layout_of, load, logits
from tests.resume.interrupted import pruned_twice


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
        {"method": "reap", "sparsity": 0.1875, "allocation": {"name": "profile", "blocks": [0.25, 0.125]}},
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
    teach = {"name": "distill", "tokens": 512, "batch_tokens": 64, "learning_rate": 2e-4}
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
