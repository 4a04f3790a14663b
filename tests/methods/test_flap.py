"""FLAP's scores, bias and budgets against transcriptions of the paper."""

import pytest
import torch

from llmprune.methods.base import Weights
from llmprune.methods.flap import Flap
from llmprune.patterns.units import Units
from llmprune.repair.mean_bias import MeanBias
from llmprune.tensors.statistics import InputMoments

X = torch.randn(200, 12, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 13)
W = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))


def moments(x: torch.Tensor = X) -> InputMoments:
    statistic = InputMoments(x.shape[1])
    for part in x.split(33):
        statistic.update(part)
    return statistic


@pytest.mark.parametrize("metric", ["WIFV", "IFV", "WIFN"])
def test_the_score_is_the_papers(metric):
    x, w = X.double(), W.double()
    expected = {
        "WIFV": x.var(0) * w.norm(dim=0) ** 2,
        "IFV": x.var(0),
        "WIFN": (w.abs() * x.square().mean(0).sqrt()).mean(0),
    }[metric]
    found = Flap(metric=metric).score(Weights(W, units=12), moments())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_the_metric_of_heads_is_squared_unless_the_recipe_says_no():
    channels = Flap().score(Weights(W, units=12), moments())
    torch.testing.assert_close(Flap().score(Weights(W, units=3), moments()), channels.square())
    torch.testing.assert_close(Flap(square_heads=False).score(Weights(W, units=3), moments()), channels)


def test_units_with_the_lowest_mean_score_go_as_a_whole():
    keep = Flap(square_heads=False).solve(Weights(W, units=3), moments(), Units(), 1 / 3).keep
    score = (X.var(0) * W.square().sum(0)).reshape(3, 4).mean(1)
    expected = (torch.arange(3) != score.argmin()).repeat_interleave(4)
    assert torch.equal(keep, expected)


def test_the_bias_preserves_the_mean_output():
    keep = torch.arange(12) % 3 != 0
    repaired = MeanBias().apply(W, keep, moments())
    after = X @ repaired.weight.T + repaired.bias.float()
    torch.testing.assert_close(after.mean(0), (X @ W.T).mean(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(repaired.weight, W * keep)
