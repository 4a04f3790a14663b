"""`reconstruct` on a mixture: the last matrix of every expert, from the dense model's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmprune import prune, recover
from llmprune.errors import JobError
from llmprune.model.experts import experts_of
from tests import tiny
from tests.recovery.test_rescale import PRUNED, last_matrices, loaded
from tests.resume.interrupted import interrupted

TEXT = {"samples": 16, "length": 32}
pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.mark.parametrize(
    ("family", "pruned"),
    [("mixtral", "experts"), ("mixtral", "2:4"), ("gpt_oss", "experts"), ("deepseek_v3", "2:4")],
)
def test_last_matrices_move_towards_the_dense_output_and_nothing_else_changes(
    family: str, pruned: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    ids = torch.randint(0, 64, (16, 32), generator=torch.Generator().manual_seed(0))
    prune(checkpoints(family), PRUNED[pruned] | {"calibration": TEXT}, out=tmp_path / "out")
    report = recover(tmp_path / "out", "reconstruct", tokens=ids)
    assert report.recovery is not None and report.recovery["sites"]
    for site in report.recovery["sites"]:
        assert site["error_after"] < site["error_before"]
    dense, before, after = map(loaded, (checkpoints(family), tmp_path / "out", tmp_path / "out-recovered"))
    for old, new in last_matrices(tmp_path / "out", tmp_path / "out-recovered").values():
        assert not torch.equal(new, old)
        assert pruned == "experts" or torch.equal(new == 0, old == 0)
    wanted, first, second = (model.model(ids).last_hidden_state for model in (dense, before, after))
    assert (second - wanted).norm() < (first - wanted).norm()


@pytest.mark.parametrize("how", ["reconstruct", "rescale"])
def test_experts_behind_a_norm_are_refused(how: str, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("gemma4_text"), PRUNED["2:4"] | {"calibration": TEXT}, out=tmp_path / "out")
    with pytest.raises(JobError, match=r"no block of this 'gemma4_text' model adds .*; use distill"):
        recover(tmp_path / "out", how)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_matrices_are_those_of_a_textbook(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    """In the first block, which gets what the dense model's gets: one least-squares problem after another."""
    ids = torch.randint(0, 64, (8, 64))
    prune(checkpoints("mixtral"), PRUNED["experts"] | {"calibration": TEXT}, out=tmp_path / "out")
    recover(tmp_path / "out", {"name": "reconstruct", "ridge": 1e-9}, tokens=ids)
    dense, pruned, refitted = map(
        loaded, (checkpoints("mixtral"), tmp_path / "out", tmp_path / "out-recovered")
    )
    experts, after = (next(experts_of(model.model.layers[0]))[1] for model in (pruned, refitted))
    calls: list[Any] = []
    experts.register_forward_pre_hook(lambda _, call: calls.append(call))
    meant, said = (model(ids, output_hidden_states=True).hidden_states[1] for model in (dense, pruned))
    ((x, index, weight),) = calls
    lacking = (meant - said).flatten(0, 1).double()
    for expert in range(experts.num_experts):
        gate, up = (x @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        entering = (weight * (index == expert)).sum(1, keepdim=True) * experts.act_fn(gate) * up
        step = torch.linalg.lstsq(entering.double(), lacking).solution
        lacking -= entering.double() @ step
        expected = experts.down_proj[expert] + step.T.float()
        torch.testing.assert_close(after.down_proj[expert], expected, rtol=1e-3, atol=1e-4)


def test_a_recovery_that_was_cut_off_ends_with_the_same_bytes(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    how = {"name": "reconstruct", "ridge": "held_out"}
    prune(checkpoints("mixtral"), PRUNED["2:4"] | {"calibration": TEXT}, out=tmp_path / "out")
    recover(tmp_path / "out", how, out=tmp_path / "whole")
    with interrupted(after=1):
        recover(tmp_path / "out", how, out=tmp_path / "cut")
    recover(tmp_path / "out", how, out=tmp_path / "cut", resume=True)
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes()
