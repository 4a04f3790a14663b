"""The Optimal Brain Surgeon's order against exact least squares for every set that could stay."""

import itertools

import pytest
import torch
from torch import Tensor

from llmprune.methods import obs
from llmprune.methods.base import Weights
from llmprune.methods.obs import Obs, channels_in_order, groups_in_order
from llmprune.patterns.units import Units
from llmprune.repair.affine import Affine
from llmprune.tensors.statistics import CentredGram
from tests.methods.test_sparsegpt import correlated

INPUTS = 24


def problem(seed: int, inputs: int = INPUTS, outputs: int = 7) -> tuple[Tensor, Tensor]:
    """Inputs with correlations and means, and a weight."""
    torch.manual_seed(seed)
    return correlated(400, inputs) + torch.randn(inputs), torch.randn(outputs, inputs)


def statistic_of(x: Tensor) -> CentredGram:
    statistic = CentredGram(x.shape[1])
    for part in x.split(150):
        statistic.update(part)
    return statistic


def moments(x: Tensor, ridge: float = 0.01) -> Tensor:
    covariance = x.double().T.cov(correction=0)
    return covariance + ridge * covariance.diagonal().diag()


def error(weight: Tensor, h: Tensor, keep: Tensor) -> float:
    """The least of tr((W - V) H (W - V)^T) over all V on the inputs that stay."""
    change = weight.double().clone()
    if keep.any():
        change[:, keep] -= torch.linalg.solve(h[keep][:, keep], h[keep] @ weight.double().T).T
    return float((change @ h * change).sum())


def brute_force(x: Tensor, weight: Tensor, units: int, ridge: float) -> tuple[list[int], list[float]]:
    """Remove unit after unit, each time the one without which the exact fit of all others is best."""
    h, size = moments(x, ridge), x.shape[1] // units
    left, order, losses = set(range(units)), [], []
    while left:
        without = {}
        for unit in left:
            stay = torch.tensor([other in left - {unit} for other in range(units)])
            without[unit] = error(weight, h, stay.repeat_interleave(size))
        order.append(min(without, key=without.__getitem__))
        losses.append(without[order[-1]])
        left.remove(order[-1])
    return order, losses


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("units", [INPUTS, 6, 3])
@pytest.mark.parametrize("ridge", [0.01, 10.0])
def test_order_and_losses_are_those_of_brute_force(ridge: float, units: int, seed: int) -> None:
    x, weight = problem(seed)
    score = Obs(ridge=ridge).score(Weights(weight, units=units), statistic_of(x)).reshape(units, -1)
    assert torch.equal(score, score[:, :1].expand_as(score))
    order, losses = brute_force(x, weight, units, ridge)
    assert score[:, 0].argsort().tolist() == order
    added = torch.tensor(losses).double().diff(prepend=torch.zeros(1).double())
    torch.testing.assert_close(score[order, 0], added.cummax(0).values, rtol=1e-3, atol=0)


@pytest.mark.parametrize("panel", [1, 5, 64, 200])
def test_panels_of_updates_leave_order_and_losses_as_they_are(
    panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obs, "PANEL", panel)
    x, weight = problem(1, inputs=150, outputs=40)
    inverse, weight = moments(x).inverse(), weight.double()
    order, added = groups_in_order(inverse, weight, 150)
    found, same = channels_in_order(inverse.clone(), weight.T @ weight)
    assert torch.equal(found, order)
    torch.testing.assert_close(same, added, rtol=1e-8, atol=0)


@pytest.mark.parametrize("units", [INPUTS, 6])
def test_what_more_sparsity_keeps_less_sparsity_keeps_too(units: int) -> None:
    x, weight = problem(4)
    weights, statistic = Weights(weight, units=units), statistic_of(x)
    masks = [
        Obs(ridge=0.01).solve(weights, statistic, Units(), number / units).keep for number in range(units + 1)
    ]
    assert all((more <= less).all() for less, more in itertools.pairwise(masks))
    assert [int(mask.sum()) * units // INPUTS for mask in masks] == list(range(units, -1, -1))


def test_what_stays_fits_better_than_what_a_plain_variance_would_keep() -> None:
    x, weight = problem(5)
    statistic = statistic_of(x)

    def lost(score: Tensor) -> float:
        keep = Units().keep(score, 0.5, INPUTS)
        repaired = Affine(ridge=0.01).apply(weight, keep, statistic)
        return float((x.double() @ (weight - repaired.weight).T - repaired.bias).square().sum())

    plain = x.var(0) * weight.square().sum(0)
    assert lost(Obs(ridge=0.01).score(Weights(weight, units=INPUTS), statistic)) < lost(plain)


def test_inputs_that_were_always_zero_go_first_and_cost_nothing() -> None:
    x, weight = problem(6)
    x[:, 4:8] = 0
    for units in (INPUTS, 6):
        score = Obs().score(Weights(weight, units=units), statistic_of(x))
        assert not score[4:8].any() and score[:4].all() and score[8:].all()


@pytest.mark.parametrize("seed", range(8))
def test_inputs_that_are_constant_but_for_rounding_go_first(seed: int) -> None:
    x, weight = problem(seed)
    x[:, 4:8] = 100 * torch.rand(4)
    score = Obs().score(Weights(weight, units=INPUTS), statistic_of(x))
    assert score.isfinite().all() and sorted(score.argsort()[:4].tolist()) == [4, 5, 6, 7]


def test_outputs_that_nothing_varies_leave_finite_scores() -> None:
    x = torch.zeros(50, INPUTS)
    assert not Obs().score(Weights(torch.randn(7, INPUTS), units=INPUTS), statistic_of(x)).any()
