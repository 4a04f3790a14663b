"""Budgets that follow the weights: the PQ index, and one threshold with a minimum for every layer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprune import plugins
from llmprune.allocation.base import Allocator
from llmprune.allocation.pq_index import PqIndex
from llmprune.errors import RequestError
from llmprune.methods.magnitude import Magnitude
from llmprune.methods.wanda import Wanda
from llmprune.model.budgets import in_proportion
from llmprune.recipe import Recipe
from tests.allocation.test_every_allocation import problem, reached

Global = plugins.find("llmprune.allocation", "global", Allocator)


def bound(w: torch.Tensor, p: float, q: float) -> float:
    """The paper's m, from its index, without rounding."""
    w = w.double().flatten().abs()
    d = w.numel()
    norm_p, norm_q = w.pow(p).sum().pow(1 / p), w.pow(q).sum().pow(1 / q)
    index = 1 - d ** (1 / q - 1 / p) * norm_p / norm_q
    return float(d * (1 - index) ** (q * p / (q - p)))


@pytest.mark.parametrize(("p", "q"), [(0.5, 1.0), (1.0, 2.0), (0.3, 1.7)])
def test_what_stays_is_the_papers_bound(p: float, q: float) -> None:
    w = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    assert PqIndex(p=p, q=q).retained(w) == pytest.approx(bound(w, p, q))
    assert PqIndex(p=p, q=q).retained(1e-30 * w.double()) == pytest.approx(bound(w, p, q), rel=1e-6)


def test_equal_entries_all_stay_and_zeros_do_not_count() -> None:
    ones = torch.ones(4, 5)
    assert PqIndex().retained(ones) == pytest.approx(20)
    ones[:2] = 0
    assert PqIndex().retained(ones) == pytest.approx(10)
    assert PqIndex().retained(torch.zeros(4, 5)) == 0


@torch.no_grad()
@pytest.mark.parametrize("on", ["weights", "scores"])
def test_layers_keep_in_proportion_to_their_bounds(on: str) -> None:
    asked = problem(Wanda(), 0.7)
    asked.anatomy.sites[3].weight[::7] *= 50
    rule = PqIndex(on=on)
    budget = rule.allocate(asked).budget
    entries = {
        site.name: (Wanda().score(asked.store.weights(site), statistic) if on == "scores" else site.weight)
        for site, statistic in asked.measured(Wanda.needs)
    }
    factors = [
        (1 - budget[site.name]) * site.weights / bound(entries[site.name], 0.5, 1.0)
        for site in asked.anatomy.sites
    ]
    assert factors == [pytest.approx(factors[0], rel=1e-4)] * len(factors)
    assert reached(asked, budget) == pytest.approx(0.7)


def test_the_index_of_scores_needs_a_method_that_has_them_before_it_prunes() -> None:
    Recipe.parse({"method": "sparsegpt", "allocation": "pq_index"})
    with pytest.raises(RequestError, match=r"^allocation: pq_index compares scores before pruning"):
        Recipe.parse({"method": "sparsegpt", "allocation": {"name": "pq_index", "on": "scores"}})
    with pytest.raises(RequestError, match=r"^allocation\.p: 1 was asked with a q of 1; ask for a smaller"):
        Recipe.parse({"method": "wanda", "allocation": {"name": "pq_index", "p": 1.0}})


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-6, 1e6)), min_size=1, max_size=9),
    st.floats(0, 0.999),
)
def test_a_total_in_proportion_is_exact_whatever_is_full(
    parts: list[tuple[int, float]], sparsity: float
) -> None:
    sites = [SimpleNamespace(name=str(i), weights=weights) for i, (weights, _) in enumerate(parts)]
    budget = in_proportion(sites, {str(i): kept for i, (_, kept) in enumerate(parts)}, sparsity)
    assert all(0 <= share <= 1 for share in budget.values())
    total = sum(site.weights for site in sites)
    assert sum(budget[site.name] * site.weights for site in sites) == pytest.approx(
        sparsity * total, abs=1e-6 * total
    )


@torch.no_grad()
@pytest.mark.parametrize("minimum", [0.05, 0.2, 0.3])
def test_every_layer_keeps_its_minimum_and_the_rest_falls_to_one_threshold(minimum: float) -> None:
    asked = problem(Magnitude(), 0.7)
    sites = asked.anatomy.sites
    sites[2].weight.mul_(1e-3)  # without a minimum, all of it would go
    assert Global().allocate(asked).budget[sites[2].name] > 0.99
    rule = Global(minimum=minimum)
    rule.require_possible(asked.anatomy, {}, 0.7)
    budget = rule.allocate(asked).budget
    assert all(1 - budget[site.name] >= minimum - 1 / site.weights for site in sites)
    assert 1 - budget[sites[2].name] == pytest.approx(minimum, abs=1 / sites[2].weights)
    drops = {site.name: round(budget[site.name] * site.weights) for site in sites}
    assert sum(drops.values()) == round(0.7 * sum(site.weights for site in sites))
    free = [site for site in sites if 1 - budget[site.name] > minimum + 1 / site.weights]
    last_gone = [float(site.weight.abs().flatten().kthvalue(drops[site.name]).values) for site in free]
    first_kept = [float(site.weight.abs().flatten().kthvalue(drops[site.name] + 1).values) for site in free]
    assert not free or max(last_gone) <= min(first_kept)


@torch.no_grad()
def test_a_minimum_that_leaves_nothing_to_choose_is_uniform() -> None:
    asked = problem(Magnitude(), 0.75)
    budget = Global(minimum=0.25).allocate(asked).budget
    assert list(budget.values()) == [pytest.approx(0.75)] * len(budget)


def test_a_minimum_that_the_sparsity_does_not_leave_is_refused() -> None:
    said = (
        "^allocation.minimum: 0.4 of every layer was asked, and a sparsity of 0.7 keeps 0.3 of all; lower one"
    )
    with pytest.raises(RequestError, match=said):
        Global(minimum=0.4).require_possible(problem().anatomy, {}, 0.7)
