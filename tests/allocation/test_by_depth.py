"""Budgets that follow the depth of a block: lists and ramps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprune.allocation.base import Problem
from llmprune.allocation.profile import Profile
from llmprune.allocation.ramp import Ramp
from llmprune.checkpoint.store import Store
from llmprune.errors import RequestError
from llmprune.methods.magnitude import Magnitude
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.model.sites.units import WholeUnits
from llmprune.model.widths import allowed, unit_sites
from llmprune.patterns.units import Units
from tests import tiny

LINEAR = Anatomy(tiny.model("llama"), LinearLayers())
UNITS = Anatomy(tiny.model("llama"), WholeUnits(Units()))
ALLOWED = allowed(UNITS, 8, lambda site, n: True)


def without_a_network() -> Anatomy:
    """A model whose last block has no feed-forward network, so that it is smaller than the others."""
    model = tiny.model("llama")
    model.model.layers[2].mlp = torch.nn.Identity()
    return Anatomy(model, LinearLayers())


def problem(anatomy: Anatomy, sparsity: float) -> Problem:
    counts = ALLOWED if anatomy is UNITS else {}
    return Problem(Store(anatomy), [], torch.ones(1, 4), Magnitude(), sparsity, allowed=counts)


def reached(anatomy: Anatomy, budget: dict[str, float]) -> float:
    return sum(budget[s.name] * s.weights for s in anatomy.sites) / sum(s.weights for s in anatomy.sites)


def test_the_sparsity_of_a_ramp_is_the_papers_arithmetic_progression() -> None:
    p, rise, blocks = 0.6, 0.3, 3
    b = rise / (blocks - 1)
    budget = Ramp(rise=rise).allocate(problem(LINEAR, p)).budget
    for site in LINEAR.sites:
        assert budget[site.name] == pytest.approx(p + b * (site.block - (blocks - 1) / 2))


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(-0.999, 0.999), st.booleans())
def test_a_possible_ramp_reaches_the_total_exactly_and_no_other_is_let_through(
    sparsity: float, steepness: float, uneven: bool
) -> None:
    anatomy = without_a_network() if uneven else LINEAR
    ramp = Ramp(rise=3 * steepness * min(sparsity, 1 - sparsity))
    shares = ramp.shares(anatomy, sparsity)
    if min(shares) >= 0 and max(shares) < 1:
        ramp.require_possible(anatomy, {}, sparsity)
        budget = ramp.allocate(problem(anatomy, sparsity)).budget
        assert all(0 <= share < 1 for share in budget.values())
        assert reached(anatomy, budget) == pytest.approx(sparsity, abs=1e-9)
        by_block = [budget[anatomy.block_sites(block)[0].name] for block in range(3)]
        assert by_block[2] - by_block[0] == pytest.approx(ramp.rise, abs=1e-9)
    elif min(shares) < -1e-6 or max(shares) > 1:
        with pytest.raises(RequestError, match=r"^allocation\.rise: "):
            ramp.require_possible(anatomy, {}, sparsity)


@pytest.mark.parametrize(
    ("rise", "sparsity", "most"), [(0.9, 0.3, "0.6"), (-0.5, 0.8, "0.4"), (0.6, 0.7, "0.6")]
)
def test_a_ramp_that_leaves_a_block_with_too_much_or_too_little_is_refused(
    rise: float, sparsity: float, most: str
) -> None:
    said = (
        f"^allocation.rise: {rise:g} was asked, and at a sparsity of {sparsity:g} .* differ by {most} at most"
    )
    with pytest.raises(RequestError, match=said):
        Ramp(rise=rise).require_possible(LINEAR, {}, sparsity)


def test_the_most_that_is_named_is_possible() -> None:
    anatomy = without_a_network()
    with pytest.raises(RequestError) as refused:
        Ramp(rise=0.99).require_possible(anatomy, {}, 0.4)
    most = float(str(refused.value).split("differ by ")[1].split()[0])
    Ramp(rise=most - 1e-3).require_possible(anatomy, {}, 0.4)
    with pytest.raises(RequestError):
        Ramp(rise=most + 1e-3).require_possible(anatomy, {}, 0.4)


def test_units_follow_a_ramp_in_whole_steps() -> None:
    asked = problem(UNITS, 0.3)
    budget = Ramp(rise=0.4).allocate(asked).budget
    sites = unit_sites(UNITS)
    kept = {site.name: round((1 - budget[site.name]) * site.units) for site in sites}
    assert all(kept[site.name] in ALLOWED[site.name] for site in sites)
    channels = [kept[site.name] for site in sites if site.part == "ffn"]
    assert channels[0] > channels[1] > channels[2]
    step = max(8 * site.cost if site.part == "ffn" else site.cost for site in sites)
    assert abs(reached(UNITS, budget) - 0.3) * sum(site.weights for site in sites) <= step


@pytest.mark.parametrize("anatomy", [LINEAR, UNITS], ids=["weights", "units"])
def test_a_ramp_is_the_profile_of_its_shares(anatomy: Anatomy) -> None:
    ramp = Ramp(rise=0.2)
    profile = Profile(blocks=ramp.shares(anatomy, 0.4))
    asked = problem(anatomy, 0.4)
    assert ramp.allocate(asked).budget == pytest.approx(profile.allocate(asked).budget)
