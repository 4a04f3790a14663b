"""A score, a repair, a recovery and an allocation are one file each, and are asked for by its dotted name.

Text sources and methods that learn have the same test in tests/text/test_sources.py and
tests/methods/test_learning_method.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmprune import prune, recover
from llmprune.methods.wanda import Wanda
from tests import tiny
from tests.adding.conftest import Add
from tests.resume.interrupted import pruned_twice

TEXT = {"samples": 4, "length": 16}
SCORE = '''
"""The middle weights go."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import InputNorm


@dataclass(frozen=True)
class Middle(Method[InputNorm]):
    needs: ClassVar = InputNorm
    power: float = 1.0

    def score(self, weights: Weights, statistic: InputNorm) -> Tensor:
        return (weights.matrix.float() - weights.matrix.float().mean()).abs() * statistic.value**self.power
'''
REPAIR = '''
"""What stays is scaled up to the dense norm."""

from dataclasses import dataclass

from torch import Tensor

from llmprune.repair.base import Repair, Repaired
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class Scaled(Repair[Nothing]):
    def apply(self, weight: Tensor, keep: Tensor, statistic: Nothing) -> Repaired:
        kept = weight * keep
        scale = float(weight.norm() / kept.norm())
        return Repaired(kept * scale, notes={"scale": scale})
'''
RECOVERY = '''
"""Output layers take the dense weights back, where they are not zero."""

from dataclasses import dataclass

from llmprune.checkpoint.journal import BlockRecord
from llmprune.recovery.base import Recovered, Recovery, Task
from llmprune.walk.walk import Walk


@dataclass(frozen=True)
class Back(Recovery):
    def recover(self, task: Task) -> Recovered:
        pruned, dense = task.pruned.store, task.dense.store
        walk = Walk(pruned, task.batches, task.pruned.probe())
        other = Walk(dense, [], task.pruned.probe())
        for stage, model in zip(walk.stages(""), other.stages(""), strict=True):
            for site, twin in zip(stage.sites, model.sites, strict=True):
                pruned.set_weight(site, dense.weight(twin) * (pruned.weight(site) != 0))
            task.draft.write_block(stage.index, pruned.tensors(stage.index), BlockRecord())
        task.draft.write_rest(pruned.rest())
        return Recovered({"sites": []}, walk.logits())
'''
ALLOCATION = '''
"""Solves every site at two shares, keeps the better half of the sites at the lower one, and hands all on."""

from dataclasses import dataclass
from typing import ClassVar

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.walk.solutions import Solutions
from llmprune.walk.solve import output_error, solve


@dataclass(frozen=True)
class TwoShares(Allocator):
    needs_text: ClassVar = True

    def allocate(self, problem: Problem) -> Allocation:
        assert problem.scratch is not None
        found, budget = Solutions(problem.scratch), {}
        for stage in problem.stages(forward=True):
            solved, errors = {}, {}
            for site, seen in stage.visit(problem.needs, "dense", together=False):
                weights = problem.store.weights(site)
                ways = [
                    solve(weights, seen.statistic, problem.method, problem.repair, problem.pattern, share)
                    for share in (problem.sparsity - 0.1, problem.sparsity + 0.1)
                ]
                solved[site.name] = ways
                errors[site.name] = output_error(seen.sample, weights.matrix, ways[1].weight, None)
            for rank, name in enumerate(sorted(errors, key=errors.get)):
                low = rank % 2
                budget[name] = problem.sparsity + (-0.1 if low else 0.1)
                solved[name] = solved[name][0 if low else 1]
            found.put(stage.index, solved)
        return Allocation(budget, solved=found)
'''


def zeros(folder: Path) -> dict[str, float]:
    """The share of zeros in every projection."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return {key: float((t == 0).float().mean()) for key, t in tensors.items() if "proj.weight" in key}


def test_a_score(add: Add, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    method = {"name": add("middle", SCORE), "power": 0.5}
    asked = {"method": method, "pattern": "2:4", "calibration": TEXT}
    report = pruned_twice(checkpoints("llama"), asked, tmp_path)
    assert report.recipe["method"] == method
    assert report.about == "The middle weights go."
    assert set(zeros(tmp_path / "out").values()) == {0.5}


def test_a_repair(add: Add, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    pattern = {"name": "units", "multiple": 8}
    asked = {"method": "wanda", "pattern": pattern, "repair": add("scaled", REPAIR), "calibration": TEXT}
    report = pruned_twice(checkpoints("llama"), asked, tmp_path)
    assert all(site.notes["scale"] > 1 for site in report.sites)


def test_a_recovery(add: Add, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    asked = {"method": "sparsegpt", "pattern": "2:4", "calibration": TEXT}
    report = prune(checkpoints("llama"), {**asked, "recovery": add("back", RECOVERY)}, out=tmp_path / "out")
    assert report.recovery is not None
    assert report.recovery["name"] == "added_by_a_test.back"
    dense = load_file(checkpoints("llama") / "model.safetensors")
    for file in (tmp_path / "out").glob("*.safetensors"):
        for key, tensor in load_file(file).items():
            assert torch.equal(tensor, dense[key] * (tensor != 0))
    assert set(zeros(tmp_path / "out").values()) == {0.5}
    recover(tmp_path / "out-pruned", "added_by_a_test.back", out=tmp_path / "by_itself")
    assert zeros(tmp_path / "by_itself") == zeros(tmp_path / "out")


def test_an_allocation_that_has_solved_the_sites_already(
    add: Add, checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[int] = []
    solve = Wanda.solve

    def counted(self: Wanda, weights, *rest):
        solved.append(weights.index)
        return solve(self, weights, *rest)

    asked = {
        "method": "wanda",
        "sparsity": 0.5,
        "allocation": add("two_shares", ALLOCATION),
        "calibration": TEXT,
    }
    with monkeypatch.context() as patch:
        patch.setattr(Wanda, "solve", counted)
        patch.setattr(Wanda, "scores_alone", classmethod(lambda cls: True))
        report = prune(checkpoints("llama"), asked, out=tmp_path / "once")
    assert len(solved) == 2 * len(report.sites)  # by the allocation alone
    shares = zeros(tmp_path / "once")
    assert {round(share, 1) for share in shares.values()} == {0.4, 0.6}
    pruned_twice(checkpoints("llama"), asked, tmp_path)
    assert zeros(tmp_path / "out") == shares
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
