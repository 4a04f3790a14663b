"""PruneNet's pieces against what they stand for: draws, their probabilities, spectra, and training."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprune.methods.base import Weights
from llmprune.methods.prunenet import PruneNet
from llmprune.methods.row_norm import RowNorm
from llmprune.methods.spectral import Spectral
from llmprune.tensors.statistics import Gram, Nothing
from llmprune.training.policy import ByPolicy, Policy, facts, shape
from llmprune.training.policy_training import _Baseline, _Pupil, drawn, log_probability
from llmprune.training.spectrum import Spectrum

G = torch.Generator().manual_seed(3)
ROWS = (torch.randn(24, 8, generator=G), torch.randn(24, 8, generator=G))
W = torch.randn(8, 24, generator=G) * torch.linspace(0.1, 2, 24)
X = torch.randn(300, 24, generator=G)
CHANNELS = Weights(W, 0, 24, ROWS)


def gram(x: torch.Tensor = X) -> Gram:
    statistic = Gram(x.shape[1])
    statistic.update(x)
    return statistic


def test_the_probability_of_a_draw_is_plackett_and_luces():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)
    total = 0.0
    for first, second in itertools.permutations(range(4), 2):
        left = scores.exp().sum()
        expected = scores[first].exp() / left * scores[second].exp() / (left - scores[first].exp())
        rest = [i for i in range(4) if i not in (first, second)]
        found = log_probability(scores, torch.tensor([first, second, *rest]), 2).exp()
        torch.testing.assert_close(found, expected)
        total += float(found)
    assert total == pytest.approx(1)


def test_units_are_drawn_with_the_probabilities_that_training_assumes():
    scores, generator = torch.tensor([0.0, 1.0, 2.0]), torch.Generator().manual_seed(0)
    orders = [tuple(drawn(scores, generator).tolist()) for _ in range(4000)]
    for order in itertools.permutations(range(3)):
        expected = math.exp(log_probability(scores, torch.tensor(order), 3))
        assert orders.count(order) / len(orders) == pytest.approx(expected, abs=0.03)


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
    assert spectrum.lost(gone) == pytest.approx(float(changed), abs=1e-5)


def test_wide_outputs_are_seen_through_fewer_directions(monkeypatch):
    whole = Spectrum(W, gram().value)
    gone = torch.arange(24) < 12
    monkeypatch.setattr("llmprune.training.spectrum.SEEN", 6)
    seen = Spectrum(W, gram().value)
    assert seen.dense.shape == (6,)
    assert (seen.dense <= whole.dense[2:] + 1e-5).all()  # Cauchy's interlacing
    assert (seen.dense >= whole.dense[:6] - 1e-5).all()
    assert seen.lost(gone) == pytest.approx(whole.lost(gone), abs=0.15)


def test_an_untrained_policy_prefers_nothing_and_training_finds_what_to_keep():
    pupil = _Pupil(PruneNet(passes=3, steps=30), shape(CHANNELS))
    assert pupil.policy(facts(CHANNELS, gram())).abs().max() == 0
    with torch.no_grad():
        for number in range(4):
            pupil.visit(CHANNELS, gram(), learning=number < 3)
            pupil.end_pass()
            pupil.start_pass()
    assert min(pupil.curve) < 0.7 * pupil.curve[0]
    kept = ByPolicy({"ffn": pupil.best}, {}).score(CHANNELS, gram()).topk(17).indices
    gone = torch.ones(24, dtype=torch.bool)
    gone[kept] = False
    assert Spectrum(W, gram().value).lost(gone) == pytest.approx(min(pupil.curve), abs=1e-6)


def test_the_same_seed_gives_the_same_policy_and_another_gives_another():
    def trained(seed: int) -> torch.Tensor:
        pupil = _Pupil(PruneNet(seed=seed), shape(CHANNELS))
        with torch.no_grad():
            pupil.visit(CHANNELS, gram(), learning=True)
            return pupil.policy(facts(CHANNELS, gram()))

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_a_draw_is_worth_what_it_does_better_than_the_block_used_to():
    baseline = _Baseline()
    first = baseline.advantages(torch.tensor([-1.0, -3.0]))
    assert first.tolist() == pytest.approx([2**-0.5, -(2**-0.5)])
    better = baseline.advantages(torch.tensor([-1.0, -1.0]))
    assert (better > 0).all()


def test_all_inputs_of_a_unit_get_its_score_and_units_are_ranked_by_the_policy():
    heads = Weights(W, 0, 6, (ROWS[0],))
    policy = Policy(4, seed=1)
    with torch.no_grad():
        policy.linear.weight[:] = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    score = ByPolicy({"attention": policy}, {}).score(heads, gram())
    assert torch.equal(score, score.reshape(6, 4)[:, 0].repeat_interleave(4))
    energy = (X.square().mean(0) * W.square().sum(0)).reshape(6, 4).mean(1)
    assert torch.equal(score.reshape(6, 4)[:, 0].argsort(), energy.argsort())


def test_facts_do_not_depend_on_the_scale_of_the_block():
    scaled = Weights(3 * W, 0, 24, tuple(5 * rows for rows in ROWS))
    torch.testing.assert_close(facts(scaled, gram(2 * X)), facts(CHANNELS, gram()), rtol=1e-4, atol=1e-4)


def test_the_row_norm_is_that_of_the_first_factor():
    torch.testing.assert_close(RowNorm().score(CHANNELS, Nothing(24)), ROWS[0].norm(dim=1))


def test_spectral_takes_first_what_adds_least_to_the_singular_values():
    score = Spectral(rounds=24).score(CHANNELS, Nothing(24))
    assert sorted(score.tolist()) == list(range(24))
    rows = ROWS[0].double()
    nuclear = [float(torch.linalg.svdvals(rows[[j for j in range(24) if j != i]]).sum()) for i in range(24)]
    lost = torch.linalg.svdvals(rows).sum() - torch.tensor(nuclear)
    assert lost[score.argmin()] <= lost.sort().values[2]
