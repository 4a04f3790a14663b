"""One factor for each expert, from the dense model's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmprune import prune, recover
from llmprune.errors import RequestError
from llmprune.model.experts import experts_of
from tests import tiny
from tests.resume.interrupted import interrupted

TEXT = {"samples": 8, "length": 32}
PRUNED: dict[str, dict[str, Any]] = {
    "experts": {"method": "reap", "pattern": "experts", "sparsity": 0.25},
    "2:4": {"method": "wanda", "pattern": "2:4"},
}

pytestmark = pytest.mark.usefixtures("check_in_process")


def loaded(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.set_experts_implementation("eager")
    return model.eval().requires_grad_(False)


def last_matrices(before: Path, after: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Those of all experts in two folders, by name; all else is the same in both."""
    old, new = (dict(loaded(folder).named_parameters()) for folder in (before, after))
    found = {name: (old[name], new[name]) for name in old if name.endswith("experts.down_proj")}
    assert all(torch.equal(old[name], new[name]) for name in old if name not in found)
    return found


@pytest.mark.parametrize("pruned", PRUNED)
@pytest.mark.parametrize("family", ["mixtral", "olmoe", "gpt_oss", "deepseek_v3"])
def test_every_expert_is_scaled_and_nothing_else_changes(
    family: str, pruned: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints(family), PRUNED[pruned] | {"calibration": TEXT}, out=tmp_path / "out")
    report = recover(tmp_path / "out", "rescale")
    assert report.recovery is not None
    for site in report.recovery["sites"]:
        assert site["error_after"] <= site["error_before"]
    scaled = last_matrices(tmp_path / "out", tmp_path / "out-recovered")
    assert [site["name"] for site in report.recovery["sites"]] == [*scaled]
    for before, after in scaled.values():
        for old, new in zip(before, after, strict=True):
            factor = float((old * new).sum() / old.square().sum())
            assert factor != 1
            torch.testing.assert_close(new, factor * old)


def test_the_factors_are_those_of_a_textbook(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    """In the first block, which gets what the dense model's gets: least squares over all tokens at once."""
    ids = torch.randint(0, 64, (4, 32))
    prune(checkpoints("mixtral"), PRUNED["experts"] | {"calibration": TEXT}, out=tmp_path / "out")
    recover(tmp_path / "out", {"name": "rescale", "ridge": 1e-9}, tokens=ids)
    dense, pruned, scaled = map(
        loaded, (checkpoints("mixtral"), tmp_path / "out", tmp_path / "out-recovered")
    )
    experts, after = (next(experts_of(model.model.layers[0]))[1] for model in (pruned, scaled))
    calls: list[Any] = []
    experts.register_forward_pre_hook(lambda _, call: calls.append(call))
    meant, said = (model(ids, output_hidden_states=True).hidden_states[1] for model in (dense, pruned))
    ((x, index, weight),) = calls
    columns = []
    for expert in range(experts.num_experts):
        gate, up = (x @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        put_out = (experts.act_fn(gate) * up) @ experts.down_proj[expert].T
        columns.append(((weight * (index == expert)).sum(1, keepdim=True) * put_out).flatten())
    lacking = (meant - said).flatten().double()
    step = torch.linalg.lstsq(torch.stack(columns, 1).double(), lacking[:, None]).solution[:, 0]
    for expert, factor in enumerate(1 + step):
        expected = factor.float() * experts.down_proj[expert]
        torch.testing.assert_close(after.down_proj[expert], expected, rtol=1e-3, atol=1e-5)


def test_a_rescaling_that_was_cut_off_ends_with_the_same_bytes(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("mixtral"), PRUNED["experts"] | {"calibration": TEXT}, out=tmp_path / "out")
    recover(tmp_path / "out", "rescale", out=tmp_path / "whole")
    with interrupted(after=1):
        recover(tmp_path / "out", "rescale", out=tmp_path / "cut")
    recover(tmp_path / "out", "rescale", out=tmp_path / "cut", resume=True)
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes()


def test_a_model_without_experts_is_refused(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), {"method": "magnitude", "sparsity": 0.5}, out=tmp_path / "out")
    with pytest.raises(RequestError, match="rescale scales experts, and this 'llama' model has none"):
        recover(tmp_path / "out", "rescale")
