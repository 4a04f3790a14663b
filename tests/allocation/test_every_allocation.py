"""Every allocation rule reaches the target, and each one does what its paper says."""

import pytest
import torch

from llmprune import plugins
from llmprune.allocation.base import Allocator, Problem
from llmprune.allocation.erk import Erk
from llmprune.allocation.owl import Owl
from llmprune.allocation.profile import Profile
from llmprune.allocation.uniform import Uniform
from llmprune.checkpoint.store import Store
from llmprune.methods.magnitude import Magnitude
from llmprune.methods.wanda import Wanda
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.patterns.unstructured import Unstructured
from llmprune.tensors.statistics import Nothing
from tests import tiny

Global = plugins.find("llmprune.allocation", "global", Allocator)
EVERY = [
    plugins.find("llmprune.allocation", name, Allocator) for name in plugins.names("llmprune.allocation")
]
RULES = [rule for rule in EVERY if "weights" in rule.serves and rule is not Profile]


def problem(method=None, sparsity: float = 0.5, family: str = "llama") -> Problem:
    anatomy = Anatomy(tiny.model(family), LinearLayers())
    batches = list(torch.randint(3, tiny.VOCABULARY, (4, 32)).split(2))
    return Problem(Store(anatomy), batches, batches[0][:1], method or Wanda(), sparsity)


def reached(asked: Problem, budget: dict[str, float]) -> float:
    sites = asked.anatomy.sites
    return sum(budget[s.name] * s.weights for s in sites) / sum(s.weights for s in sites)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8])
def test_the_budgets_add_up_to_the_target(rule, sparsity):
    asked = problem(sparsity=sparsity)
    budget = rule().allocate(asked).budget
    assert set(budget) == {site.name for site in asked.anatomy.sites}
    assert all(0 <= share <= 1 for share in budget.values())
    assert reached(asked, budget) == pytest.approx(sparsity, abs=1e-4)


def test_uniform_is_uniform():
    assert set(Uniform().allocate(problem(sparsity=0.3)).budget.values()) == {0.3}


def test_erk_keeps_a_share_that_follows_the_shape():
    asked = problem(sparsity=0.8)
    budget = Erk().allocate(asked).budget
    scales = {
        round((1 - budget[s.name]) * s.weights / (s.inputs + s.outputs), 9)
        for s in asked.anatomy.sites
        if budget[s.name] > 0
    }
    assert len(scales) == 1


def test_erk_leaves_small_layers_dense_rather_than_overfull():
    budget = Erk().allocate(problem(sparsity=0.1)).budget
    assert 0.0 in budget.values()


@torch.no_grad()
def test_owl_gives_blocks_with_more_outliers_a_larger_share():
    asked = problem(sparsity=0.7)
    with torch.no_grad():
        weight = asked.anatomy.blocks[1].mlp.down_proj.weight
        weight[:, ::16] *= 30  # a few inputs of block 1 dominate
    budget = Owl(spread=0.1).allocate(asked).budget
    by_block = [budget[asked.anatomy.block_sites(block)[0].name] for block in range(3)]
    assert by_block[1] == min(by_block)
    assert max(by_block) - min(by_block) == pytest.approx(0.2)
    assert all(budget[s.name] == by_block[s.block] for s in asked.anatomy.sites)


@torch.no_grad()
def test_owl_falls_back_to_uniform_when_no_block_stands_out():
    found = Owl(outlier=1e9).allocate(problem(sparsity=0.6)).budget
    assert list(found.values()) == [pytest.approx(0.6)] * len(found)


@torch.no_grad()
def test_global_magnitude_drops_the_smallest_weights_of_the_model():
    asked = problem(Magnitude(), 0.4)
    budget = Global().allocate(asked).budget
    weights = torch.cat([site.weight.abs().flatten() for site in asked.anatomy.sites])
    drops = round(0.4 * weights.numel())
    expected = torch.ones(weights.numel(), dtype=torch.bool)
    expected[weights.argsort(stable=True)[:drops]] = False
    kept = [
        Magnitude()
        .solve(asked.store.weights(site), Nothing(site.inputs), Unstructured("matrix"), budget[site.name])
        .keep.flatten()
        for site in asked.anatomy.sites
    ]
    assert torch.equal(torch.cat(kept), expected)


@torch.no_grad()
def test_global_counts_ties_once():
    asked = problem(Magnitude(), 0.5)
    for site in asked.anatomy.sites:
        site.weight.fill_(1.0)
    budget = Global().allocate(asked).budget
    total = sum(site.weights for site in asked.anatomy.sites)
    assert sum(round(budget[s.name] * s.weights) for s in asked.anatomy.sites) == round(0.5 * total)
    shares = [budget[site.name] for site in asked.anatomy.sites]
    assert shares == sorted(shares, reverse=True)  # earlier sites first
