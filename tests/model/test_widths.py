"""Whole numbers of units whose total is as close to the target as possible."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprune.allocation.global_threshold import GlobalThreshold
from llmprune.allocation.profile import Profile
from llmprune.errors import RequestError
from llmprune.model import widths
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.units import WholeUnits
from llmprune.patterns.units import Units
from tests import tiny


def anatomy(parts: str = "all") -> Anatomy:
    return Anatomy(tiny.model("llama"), WholeUnits(Units(parts=parts)))


SITES = widths.unit_sites(anatomy())
ALLOWED = widths.allowed(anatomy(), 8, lambda site, n: True)
TOTAL = sum(site.weights for site in SITES)


def removed_share(counts: dict[str, int]) -> float:
    return 1 - sum(counts[site.name] * site.cost for site in SITES) / TOTAL


def test_channels_come_in_multiples_and_heads_in_whole_groups():
    for site in SITES:
        assert ALLOWED[site.name] == ([1, 2] if site.part == "attention" else [8, 16, 24, 32, 40, 48])


def test_all_channels_may_stay_even_if_they_are_no_multiple():
    found = widths.allowed(anatomy("ffn"), 20, lambda site, n: True)
    assert set(map(tuple, found.values())) == {(20, 40, 48)}


def test_a_multiple_that_is_larger_than_the_width_is_refused():
    with pytest.raises(RequestError, match=r"pattern.multiple: 64 was asked.* has 48 channels"):
        widths.allowed(anatomy(), 64, lambda site, n: True)


def test_the_last_group_of_heads_cannot_go():
    with pytest.raises(RequestError, match=r"^sparsity: 0.9 was asked, and at most 0\.\d+ can go"):
        widths.require_reachable(SITES, ALLOWED, 0.9)


OUT_OF_REACH = {  # allocation, parts, sparsity
    "a threshold for heads alone": (GlobalThreshold(per_kind=True), "all", 0.6),
    "a profile at the edge of what its tolerance allows": (
        Profile(blocks=[0.5, 0.5, 0.51]),
        "attention",
        0.5,
    ),
    "a profile of another model": (Profile(blocks=[0.5, 0.5]), "all", 0.5),
    "a profile of another sparsity": (Profile(blocks=[0.2, 0.2, 0.2]), "all", 0.5),
}


@pytest.mark.parametrize(("allocation", "parts", "sparsity"), OUT_OF_REACH.values(), ids=OUT_OF_REACH)
def test_a_budget_out_of_reach_is_refused_by_the_rule_that_shares_it_out(allocation, parts, sparsity):
    model = anatomy(parts)
    allowed = widths.allowed(model, 8, lambda site, n: True)
    with pytest.raises(RequestError, match=r"^(sparsity|allocation)"):
        allocation.require_possible(model, allowed, sparsity)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.floats(0, 0.65))
def test_the_total_is_as_close_as_whole_steps_allow(shares, sparsity):
    wanted = {site.name: share * site.units for site, share in zip(SITES, shares, strict=True)}
    counts = widths.round_counts(SITES, ALLOWED, wanted, sparsity)
    assert all(counts[site.name] in ALLOWED[site.name] for site in SITES)
    largest = max(8 * s.cost if s.part == "ffn" else s.cost for s in SITES)
    assert abs(removed_share(counts) - sparsity) * TOTAL <= largest


def test_what_fits_exactly_is_what_comes_out():
    wanted = {site.name: float(ALLOWED[site.name][-2]) for site in SITES}
    share = 1 - sum(ALLOWED[site.name][-2] * site.cost for site in SITES) / TOTAL
    assert widths.round_counts(SITES, ALLOWED, wanted, share) == {k: int(v) for k, v in wanted.items()}


@pytest.mark.parametrize(("wanted", "number"), [(0, 8), (11.9, 8), (12, 16), (12.1, 16), (99, 24)])
def test_the_nearest_number_and_of_two_the_larger(wanted, number):
    assert widths.nearest([8, 16, 24], wanted) == number
