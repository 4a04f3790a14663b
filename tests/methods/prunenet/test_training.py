"""The policy gradient against what it stands for: draws, their probabilities, and what is learned."""

import itertools
import math

import pytest
import torch

from llmprune.methods.prunenet import PruneNet
from llmprune.methods.prunenet.policy import ByPolicy, features, shape
from llmprune.methods.prunenet.spectrum import Spectrum
from llmprune.methods.prunenet.training import Baseline, Trainer, log_probability, random_order
from tests.methods.prunenet.channels import CHANNELS, W, gram


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
    orders = [tuple(random_order(scores, generator).tolist()) for _ in range(4000)]
    for order in itertools.permutations(range(3)):
        expected = math.exp(log_probability(scores, torch.tensor(order), 3))
        assert orders.count(order) / len(orders) == pytest.approx(expected, abs=0.03)


def test_an_untrained_policy_prefers_nothing_and_training_finds_what_to_keep():
    trainer = Trainer(PruneNet(passes=3, steps=30), shape(CHANNELS))
    assert trainer.policy(features(CHANNELS, gram())).abs().max() == 0
    with torch.no_grad():
        for number in range(4):
            trainer.visit(CHANNELS, gram(), learning=number < 3)
            trainer.end_pass()
            trainer.start_pass()
    assert min(trainer.curve) < 0.7 * trainer.curve[0]
    kept = ByPolicy({"ffn": trainer.best}, {}).score(CHANNELS, gram()).topk(17).indices
    gone = torch.ones(24, dtype=torch.bool)
    gone[kept] = False
    assert Spectrum(W, gram().value).change(gone) == pytest.approx(min(trainer.curve), abs=1e-6)


def test_the_same_seed_gives_the_same_policy_and_another_gives_another():
    def trained(seed: int) -> torch.Tensor:
        trainer = Trainer(PruneNet(seed=seed), shape(CHANNELS))
        with torch.no_grad():
            trainer.visit(CHANNELS, gram(), learning=True)
            return trainer.policy(features(CHANNELS, gram()))

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_a_draw_is_worth_what_it_does_better_than_the_block_used_to():
    baseline = Baseline()
    first = baseline.advantages(torch.tensor([-1.0, -3.0]))
    assert first.tolist() == pytest.approx([2**-0.5, -(2**-0.5)])
    better = baseline.advantages(torch.tensor([-1.0, -1.0]))
    assert (better > 0).all()
