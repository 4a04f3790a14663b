"""CFSP's channel scores and block budgets against transcriptions of the paper."""

import math

import torch

from llmprune.allocation.block_influence import BlockInfluence
from llmprune.checkpoint.store import Store
from llmprune.methods.base import Weights
from llmprune.methods.cfsp import Cfsp
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.tensors.statistics import InputNorm
from llmprune.walk.walk import Walk
from tests import tiny

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 7)
W = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))


def norm() -> InputNorm:
    statistic = InputNorm(6)
    statistic.update(X)
    return statistic


def test_a_channel_matters_by_its_share_of_every_output():
    expected = [0.0] * 6
    size = X.norm(dim=0)
    for j in range(4):
        total = sum(abs(float(W[j, k])) * float(size[k]) for k in range(6))
        for i in range(6):
            expected[i] += abs(float(W[j, i])) * float(size[i]) / total
    found = Cfsp(importance="relative").score(Weights(W, units=6), norm())
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=0)


def test_the_authors_score_ranks_by_the_inputs_alone():
    found = Cfsp().score(Weights(W, units=6), norm())
    assert torch.equal(found.argsort(), X.norm(dim=0).argsort())


@torch.no_grad()
def test_the_influence_is_the_mean_angle_between_input_and_output():
    model = tiny.model("llama")
    anatomy = Anatomy(model, LinearLayers())
    ids = torch.randint(3, tiny.VOCABULARY, (2, 16))
    hidden = model(ids, output_hidden_states=True).hidden_states
    walk = Walk(Store(anatomy), [ids], ids[:1])
    found = [stage.angle() for stage in walk.stages("")]
    for block in range(2):  # the last entry of hidden_states has been normalised
        pairs = zip(hidden[block].flatten(0, 1), hidden[block + 1].flatten(0, 1), strict=True)
        angles = [math.acos(max(-1, min(1, float(a @ b / a.norm() / b.norm())))) for a, b in pairs]
        assert math.isclose(found[block], sum(angles) / len(angles) / math.pi, rel_tol=1e-4)


def test_blocks_that_turn_their_input_further_keep_more():
    angles = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    gates = [1 / (1 + math.exp(-13.1 * (a - 0.7 / 3))) for a in (0.1, 0.2, 0.4)]
    expected = torch.tensor(gates, dtype=torch.float64) * 0.5 * 3 / sum(gates)
    torch.testing.assert_close(BlockInfluence().shares(angles, 0.5), expected)
    assert torch.equal(BlockInfluence(temperature=0).shares(angles, 0.5), torch.full((3,), 0.5).double())


def test_no_block_keeps_more_than_all():
    shares = BlockInfluence(temperature=100).shares(torch.tensor([0.1, 0.2, 0.9]).double(), 0.8)
    assert shares.max() <= 1
    assert math.isclose(float(shares.mean()), 0.8, rel_tol=1e-9)
