"""Refined masks lower the loss, keep the budget, and hold the original weights."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from llmprune import prune, recover
from llmprune.errors import RequestError
from llmprune.recovery.refine import rounds
from llmprune.recovery.refine.rounds import Refinement
from llmprune.recovery.refine.swaps import Problem, candidates, solve
from tests import tiny
from tests.recovery.test_reconstruct import PRUNED, tensors
from tests.resume.children import hashes

TEXT = {"calibration": {"samples": 16, "length": 32}}
MASKS: dict[str, dict[str, Any]] = {
    "row": {"method": "wanda"},
    "matrix": {"method": "magnitude", "sparsity": 0.3, "pattern": {"compete": "matrix"}},
    "2:4": {"method": "wanda", "pattern": "2:4"},
}
HOW: dict[str, Any] = {"name": "refine", "rounds": 4, "windows": 6, "candidates": 0.1, "alpha": 0.1}


pytestmark = pytest.mark.usefixtures("check_in_process")


def problem(groups: int, each: int, samples: int, seed: int) -> Problem:
    """A random problem, some with a gradient that matters more than the curvature."""
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    gone = (torch.arange(2 * each) < each).repeat(groups, 1)
    shape = groups, 2 * each
    gradient, diagonal = normal(*shape) / (1 + seed % 9), normal(*shape).square()
    coupling = (1.0, 0.5, 0.0)[seed % 3]
    return Problem(normal(*shape), gone, gradient, diagonal, normal(samples, *shape), 0.75, coupling, 0.01)


def objective(asked: Problem, gone: torch.Tensor) -> float:
    """The definition, with the whole matrix F."""
    change = torch.where(gone == asked.gone, 0.0, torch.where(gone, -asked.values, asked.values)).flatten()
    rows = asked.jacobian.flatten(1)
    fisher = asked.coupling * sum(torch.outer(row, row) for row in rows) / len(rows)
    fisher += (1 - asked.coupling) * torch.diag(asked.diagonal.flatten())
    return float(
        0.75 * change @ asked.gradient.flatten() + change @ fisher @ change / 2 + 0.01 * change @ change
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_the_energy_is_its_definition(groups: int, each: int, samples: int, seed: int) -> None:
    asked = problem(groups, each, samples, seed)
    gone = torch.rand(groups, 2 * each, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert asked.energy(gone) == pytest.approx(objective(asked, gone), abs=1e-9)
    step, added = asked.flips(gone)
    for place in range(gone.numel()):
        flipped = gone.clone()
        flipped.view(-1)[place] ^= True
        expected = objective(asked, flipped) - objective(asked, gone)
        assert float(added.view(-1)[place]) == pytest.approx(expected, abs=1e-9)
        moved = (asked.change(flipped) - asked.change(gone)).view(-1)[place]
        assert float(step.view(-1)[place]) == pytest.approx(float(moved))


@pytest.mark.parametrize("seed", range(24))
def test_of_sixteen_weights_the_best_mask_is_found(seed: int) -> None:
    asked = problem(1, 8, (4, 16, 64)[seed % 3], seed)
    masks = torch.zeros(12870, 16, dtype=torch.bool)
    for number, places in enumerate(itertools.combinations(range(16), 8)):
        masks[number, list(places)] = True
    changes = (asked.gone.double() - masks.double()) * asked.values
    fisher = asked.coupling * asked.jacobian[:, 0].T @ asked.jacobian[:, 0] / len(asked.jacobian)
    fisher += (1 - asked.coupling) * torch.diag(asked.diagonal[0])
    energies = 0.75 * changes @ asked.gradient[0] + ((changes @ fisher / 2 + 0.01 * changes) * changes).sum(1)
    found = solve(asked, torch.Generator().manual_seed(seed))
    assert asked.energy(found) == pytest.approx(float(energies.min()), abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_a_solution_keeps_the_budget_and_costs_nothing(
    groups: int, each: int, samples: int, seed: int
) -> None:
    asked = problem(groups, each, samples, seed)
    found = solve(asked, torch.Generator().manual_seed(seed))
    assert (found.sum(1) == each).all()
    assert asked.energy(found) <= 0


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(2, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_candidates_are_the_cheapest_of_either_kind(groups: int, size: int, each: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    cost = torch.randn(groups, size, generator=draws)
    gone, usable = (torch.rand(groups, size, generator=draws) < level for level in (0.5, 0.9))
    each = min(each, size // 2)
    where, promise = candidates(cost, gone, usable, each)
    for group in range(groups):
        kinds = [cost[group][kind[group] & usable[group]].sort().values for kind in (gone, ~gone)]
        if min(map(len, kinds)) < each:
            assert promise[group].isinf()
            continue
        chosen = cost.flatten()[where[group]]
        assert torch.equal(chosen, torch.cat([kind[:each] for kind in kinds]))
        assert float(promise[group]) == pytest.approx(float(chosen.sum()), abs=1e-5)
        assert (where[group] // size == group).all() and len(where[group].unique()) == 2 * each
        assert torch.equal(gone.flatten()[where[group]], torch.arange(2 * each) < each)


def zeros_by_group(weight: torch.Tensor, kind: str) -> torch.Tensor:
    return {"row": weight, "matrix": weight.reshape(1, -1), "2:4": weight.reshape(-1, 4)}[kind].eq(0).sum(1)


@pytest.mark.parametrize("loss", ["teacher", "text"])
@pytest.mark.parametrize("kind", MASKS)
def test_the_loss_falls_and_every_group_keeps_its_zeros(
    kind: str, loss: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), MASKS[kind] | TEXT, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW | {"loss": loss}, out=tmp_path / "refined")
    assert report.recovery is not None
    losses = report.recovery["losses"]
    assert len(losses) == 1 + HOW["rounds"]
    assert all(after <= before for before, after in itertools.pairwise(losses))
    assert losses[-1] < losses[0]
    dense, before, after = (
        tensors(folder) for folder in (checkpoints("llama"), tmp_path / "out", tmp_path / "refined")
    )
    moved = 0
    for key, weight in after.items():
        masked = ".layers." in key and weight.ndim == 2
        assert torch.equal(weight, torch.where(weight == 0, 0, dense[key]) if masked else before[key])
        if masked:
            assert torch.equal(zeros_by_group(weight, kind), zeros_by_group(before[key], kind))
            moved += int(((before[key] == 0) & (weight != 0)).sum())
    assert 0 < moved <= sum(report.recovery["swaps"])


def test_the_judging_windows_are_worse_off_without_the_swaps(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    """The record is what the saved model has: KL on the windows that gave no gradient."""
    tokens = torch.randint(3, tiny.VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(3))
    prune(checkpoints("llama"), MASKS["row"], tokens=tokens, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW, tokens=tokens, out=tmp_path / "refined")
    judging = tokens[torch.randperm(8, generator=torch.Generator().manual_seed(0))[:2]]
    logs = [
        AutoModelForCausalLM.from_pretrained(folder).eval()(judging).logits[:, :-1].detach().log_softmax(-1)
        for folder in (checkpoints("llama"), tmp_path / "out", tmp_path / "refined")
    ]
    kl = [float((logs[0].exp() * (logs[0] - other)).sum(-1).mean()) for other in logs[1:]]
    assert report.recovery is not None
    assert [report.recovery["losses"][0], report.recovery["losses"][-1]] == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "phi", "gemma2"])
def test_refining_needs_no_row_for_a_family(
    family: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints(family), MASKS["row"] | TEXT, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW | {"rounds": 2}, out=tmp_path / "refined")
    assert report.recovery is not None and sum(report.recovery["swaps"]) > 0


def test_an_interrupted_run_ends_with_the_same_bytes(
    checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(checkpoints("llama"), MASKS["row"] | TEXT, out=tmp_path / "out")
    recover(tmp_path / "out", HOW, out=tmp_path / "whole")
    whole, round_ = Refinement.round, []

    def stop(self: Refinement, windows: torch.Tensor) -> None:
        if len(round_) == 2:
            raise KeyboardInterrupt
        round_.append(windows)
        whole(self, windows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rounds.Refinement, "round", stop)
        recover(tmp_path / "out", HOW, out=tmp_path / "cut")
    recover(tmp_path / "out", HOW, out=tmp_path / "cut", resume=True)
    recover(tmp_path / "out", HOW, out=tmp_path / "again")
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole") == hashes(tmp_path / "again")


def test_it_stops_in_time(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), MASKS["row"] | TEXT, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW | {"rounds": 1000, "seconds": 3})
    assert report.recovery is not None
    assert len(report.recovery["swaps"]) < 1000


def test_compensated_weights_are_refused_unless_they_count_as_original(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), {"method": "sparsegpt", **TEXT}, out=tmp_path / "out")
    with pytest.raises(RequestError, match=r"^recovery\.original: .* are not those of .*original: pruned"):
        recover(tmp_path / "out", HOW, out=tmp_path / "refined")
    assert not (tmp_path / "refined").exists()
    recover(tmp_path / "out", HOW | {"original": "pruned"}, out=tmp_path / "refined")
    dense, before, after = (
        tensors(folder) for folder in (checkpoints("llama"), tmp_path / "out", tmp_path / "refined")
    )
    for key, weight in after.items():
        original = torch.where(before[key] == 0, dense[key], before[key])
        assert ((weight == 0) | (weight == original)).all()


@pytest.mark.parametrize(
    ("pruned", "options", "said"),
    [
        ("units without", {}, "recovery: refine swaps single weights, and .* was pruned by units"),
        ("2:4", {"calibration": {"samples": 1}}, r"calibration\.samples: 1 was asked, and refine judges"),
    ],
)
def test_what_cannot_be_refined_is_a_sentence(
    pruned: str, options: dict[str, Any], said: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), PRUNED[pruned] | TEXT, out=tmp_path / "out")
    with pytest.raises(RequestError, match=f"^{said}"):
        recover(tmp_path / "out", "refine", **options)
    assert not (tmp_path / "out-recovered").exists()


def test_a_mask_of_a_cut_model_is_refused(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    steps = [PRUNED["units without"], PRUNED["2:4"]]
    prune(checkpoints("llama"), {"steps": steps, **TEXT}, out=tmp_path / "out")
    with pytest.raises(RequestError, match=r"^recovery: refine swaps single weights, and .* was cut from"):
        recover(tmp_path / "out", "refine")


def test_fewer_blocks_are_refined_beside_their_own(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    depth = {"pattern": {"name": "blocks", "remove": [1]}}
    prune(checkpoints("llama"), {"steps": [depth, MASKS["2:4"]], **TEXT}, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW)
    assert report.recovery is not None and sum(report.recovery["swaps"]) > 0


@pytest.mark.parametrize(
    ("option", "value"),
    [("rounds", 0), ("candidates", 0), ("candidates", 1.5), ("windows", 0), ("seconds", 0), ("loss", "x")],
)
def test_options_out_of_range_are_refused(option: str, value: object, tmp_path: Path) -> None:
    from llmprune.recipe.parts import recovery_of

    with pytest.raises(RequestError, match=rf"^recovery\.{option}: input should be"):
        recovery_of({"name": "refine", option: value})
