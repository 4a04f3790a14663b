"""The spectrum that is brought up to date against that of the outputs themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprune.methods.prunenet.spectrum import Spectrum
from tests.methods.prunenet.channels import W, X, gram


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 23))
def test_the_updated_spectrum_is_that_of_the_outputs_without_the_inputs(seed, count):
    gone = torch.zeros(24, dtype=torch.bool)
    gone[torch.randperm(24, generator=torch.Generator().manual_seed(seed))[:count]] = True
    x, w = X.double(), W.double()
    spectrum = Spectrum(w, x.T @ x / len(x))
    expected = torch.linalg.svdvals(x[:, ~gone] @ w[:, ~gone].T).flip(0) / len(x) ** 0.5
    found = spectrum.without(gone)
    expected = torch.cat([torch.zeros(8 - len(expected), dtype=torch.float64), expected])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    dense = torch.linalg.svdvals(x @ w.T).flip(0) / len(x) ** 0.5
    changed = (dense - expected).abs().sum() / dense.sum()
    assert spectrum.change(gone) == pytest.approx(float(changed), abs=1e-5)


def test_wide_outputs_are_seen_through_fewer_directions(monkeypatch):
    whole = Spectrum(W, gram().value)
    gone = torch.arange(24) < 12
    monkeypatch.setattr("llmprune.methods.prunenet.spectrum.DIRECTIONS", 6)
    seen = Spectrum(W, gram().value)
    assert seen.dense.shape == (6,)
    assert (seen.dense <= whole.dense[2:] + 1e-5).all()  # Cauchy's interlacing
    assert (seen.dense >= whole.dense[:6] - 1e-5).all()
    assert seen.change(gone) == pytest.approx(whole.change(gone), abs=0.15)
