"""The best weights for a mask that is given."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprune import prune
from llmprune.repair.refit import MaskedRefit
from tests import tiny
from tests.methods.test_sparsegpt import correlated, gram_of


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_every_row_is_the_least_squares_fit_of_its_mask(seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = correlated(400, 12), torch.randn(5, 12)
    keep = torch.rand(5, 12) < 0.6
    found = MaskedRefit(ridge=1e-9, steps=60).apply(weight, keep, gram_of(x)).weight
    assert (found[~keep] == 0).all()
    for row, mask, fitted in zip(weight, keep, found, strict=True):
        expected = torch.linalg.lstsq(x[:, mask].double(), x.double() @ row.double()[:, None]).solution[:, 0]
        torch.testing.assert_close(fitted[mask].double(), expected, rtol=1e-2, atol=1e-3)


def test_nothing_changes_where_nothing_goes_and_silent_inputs_do_no_harm() -> None:
    x, weight = correlated(100, 8), torch.randn(3, 8)
    x[:, 2] = 0
    everything = torch.ones(3, 8, dtype=torch.bool)
    torch.testing.assert_close(MaskedRefit().apply(weight, everything, gram_of(x)).weight, weight)
    assert MaskedRefit().apply(weight, torch.rand(3, 8) < 0.5, gram_of(x)).weight.isfinite().all()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_refitted_mask_comes_nearer_to_the_outputs(method: str) -> None:
    tokens = torch.randint(0, 100, (8, 24))
    asked = {"method": method, "pattern": "2:4", "tokens": tokens, "propagation": "dense"}
    plain = prune(tiny.model("llama"), **asked)
    refitted = prune(tiny.model("llama"), repair="refit", **asked)
    before, after = (sum(site.error for site in report.sites) for report in (plain, refitted))
    assert after < before
    assert [site.dropped for site in plain.sites] == [site.dropped for site in refitted.sites]
