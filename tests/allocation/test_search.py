"""The search keeps the budget, does as its papers say, and never ends worse than it began."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprune import prune
from llmprune.allocation.base import Problem
from llmprune.allocation.best import Contest
from llmprune.allocation.uniform import Uniform
from llmprune.checkpoint.store import Store
from llmprune.errors import RequestError
from llmprune.measured import lowest
from llmprune.methods.wanda import Wanda
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.tensors.agreement import agreement
from llmprune.tensors.knapsack import balanced
from llmprune.walk.evolution import mutated
from llmprune.walk.grid import Grid, grid_around
from llmprune.walk.levels import BlockLevels, Levels
from llmprune.walk.population import Population
from llmprune.walk.solve import Solved
from tests import tiny
from tests.resume.interrupted import hashes

TOKENS = torch.randint(3, tiny.VOCABULARY, (16, 24), generator=torch.Generator().manual_seed(4))
QUICK = {"name": "search", "levels": 5, "generations": 2, "offspring": 4, "tokens": 48}
WAYS: dict[str, dict[str, Any]] = {
    "units": {
        "method": "flap",
        "sparsity": 0.3,
        "pattern": {"name": "units", "multiple": 4},
        "repair": "affine",
    },
    "weights": {"method": "wanda", "sparsity": 0.6},
    "compensated": {"method": "sparsegpt", "sparsity": 0.6},
}


pytestmark = pytest.mark.usefixtures("check_in_process")


def problem(sparsity: float = 0.5) -> Problem:
    anatomy = Anatomy(tiny.model("llama"), LinearLayers())
    return Problem(Store(anatomy), list(TOKENS.split(2)), TOKENS[:1], Wanda(), sparsity)


def grid(sparsity: float = 0.5) -> Grid:
    asked = problem(sparsity)
    return grid_around(asked, Uniform().allocate(asked).budget, 0.125, 9)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_knapsack_is_exhaustive_search(data: st.DataObject) -> None:
    steps = st.lists(st.integers(-2, 2), min_size=1, max_size=4, unique=True).map(lambda s: {0, *s})
    items = data.draw(st.lists(steps, min_size=1, max_size=5))
    costs = [{step: data.draw(st.floats(0, 9)) for step in sorted(item)} for item in items]
    every = [chosen for chosen in itertools.product(*costs) if sum(chosen) == 0]
    least = min(sum(cost[s] for cost, s in zip(costs, chosen, strict=True)) for chosen in every)
    found = balanced(costs)
    assert sum(found) == 0
    assert sum(cost[s] for cost, s in zip(costs, found, strict=True)) == pytest.approx(least)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.37, 0.5, 0.7]))
def test_mutations_keep_the_number_of_weights(seed: int, sparsity: float) -> None:
    levels, lots = grid(sparsity), random.Random(seed)
    child = (0,) * len(levels.rows)

    def removed(chosen: tuple[int, ...]) -> int:
        shares = [row.shares[level] for row, level in zip(levels.rows, chosen, strict=True)]
        rows = zip(levels.rows, shares, strict=True)
        return sum(round(share * row.items) * row.site.outputs for row, share in rows)

    before, moved = removed(child), set()
    for _ in range(10):
        child = mutated(child, levels, lots)
        moved.add(child)
        assert removed(child) == before
    assert len(moved) > 1


def test_sites_get_what_earlier_ones_put_out_on_average() -> None:
    """Tyr's equation 5: outputs of all levels, each weighted by the share that it keeps."""
    asked = problem()
    site, block, x = asked.anatomy.sites[0], BlockLevels(), torch.randn(7, 32)
    shares = {-1: 0.25, 0: 0.5, 1: 0.75}
    weights = {level: torch.randn(site.outputs, site.inputs) for level in shares}
    for level, weight in weights.items():
        block.add(site, level, Solved(weight, weight > 0))
    block.place_expected(asked.store, site, {level: 1 - share for level, share in shares.items()})
    outputs = sum((1 - shares[level]) * (x @ weights[level].T) for level in shares)
    torch.testing.assert_close(x @ site.weight.T, outputs / sum(1 - s for s in shares.values()))


@torch.no_grad()
def test_a_candidate_costs_what_the_whole_model_says(tmp_path: Path) -> None:
    asked = problem()
    levels, sites = Levels(tmp_path), asked.anatomy.sites
    masks = {(s.name, level): torch.rand(s.outputs, s.inputs) < 0.7 for s in sites for level in (0, 1)}
    for number in range(len(asked.anatomy.blocks)):
        block = BlockLevels()
        for site in asked.anatomy.block_sites(number):
            for level in (0, 1):
                mask = masks[site.name, level]
                block.add(site, level, Solved(site.weight * mask, mask))
        levels.put(number, block)
    lots = random.Random(1)
    candidates = [tuple(lots.choice([None, 0, 1]) for _ in sites) for _ in range(5)]
    candidates += [
        (*candidates[0][:-1], 1),
        (None,) * len(sites),
    ]  # one that shares a beginning; the dense one
    batches = list(TOKENS[:4].split(2))
    found = Population(asked.store, TOKENS[:1], levels).cost(candidates, batches, "")
    dense = tiny.model("llama").eval()
    expected = dense(TOKENS[:4]).logits[:, :-1].flatten(0, 1)
    for candidate, cost in zip(candidates, found, strict=True):
        model = tiny.model("llama").eval()
        for site, level in zip(Anatomy(model, LinearLayers()).sites, candidate, strict=True):
            if level is not None:
                site.weight.mul_(masks[site.name, level])
        compared = agreement(expected, model(TOKENS[:4]).logits[:, :-1].flatten(0, 1))
        assert cost == pytest.approx(compared.kl / compared.predictions, abs=1e-6)
    for site in sites:  # the model is as it was
        assert torch.equal(site.weight, dict(dense.named_parameters())[site.key])


@pytest.mark.parametrize("asked", WAYS.values(), ids=WAYS)
def test_it_keeps_the_budget_of_the_best_rule_and_is_never_worse(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny.save("llama", tmp_path / "dense")
    found, again = (
        prune(folder, asked | {"allocation": QUICK}, tokens=TOKENS, out=tmp_path / name) for name in "ab"
    )
    assert found.sites == again.sites
    assert found.budgets and found.searched
    rules = [trial for trial in found.budgets if trial["allocation"]["name"] != "search"]
    best = rules[lowest(rules)]
    assert rules[0]["allocation"]["name"] == "uniform"
    assert found.budgets[lowest(found.budgets)]["kl"] <= best["kl"]
    alone = asked | {"allocation": best["allocation"], "layout": None}
    ruled = prune(folder, alone, tokens=TOKENS, out=tmp_path / "rule")
    assert sum(site.dropped for site in found.sites) == sum(site.dropped for site in ruled.sites)
    assert [step["generation"] for step in found.searched] == [0, 1, 2, 1, 2]
    assert not (tmp_path / "a" / ".unfinished").exists()


@pytest.mark.parametrize("asked", WAYS.values(), ids=WAYS)
def test_interrupted_at_any_moment_it_resumes_to_the_same_bytes(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tiny.save("llama", tmp_path / "dense"), asked | {"allocation": QUICK}
    prune(folder, asked, tokens=TOKENS, out=tmp_path / "whole")
    measured, written, tried = Population.cost, Levels.put, Contest.worth
    lots, left = random.Random(asked["method"]), [0]

    def counted(do: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return do(*given)

        return step

    monkeypatch.setattr(Population, "cost", counted(measured))
    monkeypatch.setattr(Levels, "put", counted(written))
    monkeypatch.setattr(Contest, "worth", counted(tried))
    kills = 0
    while not (tmp_path / "out" / "config.json").exists():
        left[0] = lots.randint(2, 6)
        with contextlib.suppress(KeyboardInterrupt):
            prune(folder, asked, tokens=TOKENS, out=tmp_path / "out", resume=True)
        kills += 1
    assert kills > 3
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_a_search_left_by_another_request_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tiny.save("llama", tmp_path / "dense"), tmp_path / "out"

    def killed(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Population, "cost", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(folder, WAYS["weights"] | {"allocation": QUICK}, tokens=TOKENS, out=out)
    other = WAYS["weights"] | {"allocation": QUICK, "sparsity": 0.7}
    with pytest.raises(RequestError, match="sparsity"):
        prune(folder, other, tokens=TOKENS, out=out, resume=True)
    with pytest.raises(RequestError, match="resume"):
        prune(folder, other, tokens=TOKENS, out=out)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(RequestError, match="ask for at least 2"):
        prune(tiny.model("llama"), WAYS["weights"] | {"allocation": "search"}, tokens=TOKENS[:1])
    for wrong in ({"generations": 0}, {"levels": 1}, {"step": 1.0}, {"offspring": 0}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            prune(tiny.model("llama"), WAYS["weights"] | {"allocation": QUICK | wrong}, tokens=TOKENS)
    with pytest.raises(RequestError, match="uniform"):
        prune(tiny.model("llama"), method="wanda", pattern="2:4", allocation="search", tokens=TOKENS)


def test_magnitude_needs_no_statistic_but_is_searched_on_text() -> None:
    report = prune(tiny.model("llama"), method="magnitude", sparsity=0.6, allocation=QUICK, tokens=TOKENS)
    assert report.searched


def test_the_plan_counts_the_levels_on_disk(tmp_path: Path) -> None:
    folder, plans = tiny.save("llama", tmp_path / "dense"), []
    for name in ("uniform", "search"):
        asked = WAYS["weights"] | {"allocation": name}
        prune(folder, asked, tokens=TOKENS[:2], out=tmp_path / name, on_plan=plans.append)
    weights = plans[0].prunable_parameters * plans[0].checkpoint_bytes / plans[0].parameters
    assert plans[1].disk_bytes - plans[0].disk_bytes == pytest.approx(9 * weights)
