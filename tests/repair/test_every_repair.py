"""What every repair promises: its error on the calibration inputs is the least that it can reach."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprune import plugins
from llmprune.repair.affine import Affine
from llmprune.repair.base import RIDGES, Repair
from llmprune.repair.least_squares import LeastSquares
from llmprune.repair.mean_bias import MeanBias
from llmprune.tensors.held_out import USUAL

REPAIRS = [plugins.find("llmprune.repair", name, Repair) for name in plugins.names("llmprune.repair")]
none = next(repair for repair in REPAIRS if repair.__module__.endswith(".none"))
SMALL = 1e-9  # a ridge that leaves the least squares as they are


def case(seed: int, inputs: int = 10, outputs: int = 4, tokens: int = 80):
    """Correlated inputs that are not centred, a weight, and a mask."""
    noise = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=noise)
    x = torch.randn(tokens, inputs, generator=noise) @ mix + 3 * torch.randn(inputs, generator=noise)
    return x, torch.randn(outputs, inputs, generator=noise), torch.rand(inputs, generator=noise) < 0.6


def repaired(repair, x, weight, keep):
    statistic = repair.gathers(x.shape[1])
    for part in x.split(17):
        statistic.update(part)
    return repair.apply(weight, keep, statistic)


def error(repair, x, weight, keep) -> float:
    result = repaired(repair, x, weight, keep)
    lost = x.double() @ (weight.double() - result.weight.double()).T
    return float((lost if result.bias is None else lost - result.bias).norm())


@pytest.mark.parametrize("repair", REPAIRS)
def test_inputs_that_go_are_zero_and_nothing_changes_if_none_go(repair):
    x, weight, keep = case(0)
    result = repaired(repair(), x, weight, keep)
    assert (result.weight[:, ~keep] == 0).all()
    assert (result.bias is not None) == repair.gives_bias
    untouched = repaired(repair(), x, weight, torch.ones_like(keep))
    torch.testing.assert_close(untouched.weight.float(), weight)
    assert untouched.bias is None or untouched.bias.abs().max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_more_freedom_is_never_worse_on_the_calibration_inputs(seed):
    x, weight, keep = case(seed)
    errors = {repair: error(repair(), x, weight, keep) for repair in (none, MeanBias)}
    squares, affine = (error(repair(SMALL), x, weight, keep) for repair in (LeastSquares, Affine))
    room = 1 + 1e-4
    assert errors[MeanBias] <= errors[none] * room
    assert squares <= errors[none] * room
    assert affine <= min(errors[MeanBias], squares) * room + 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-4, 10))
def test_the_ridge_pulls_towards_the_weights_that_were(seed, ridge):
    x, weight, keep = case(seed)
    assert error(LeastSquares(ridge), x, weight, keep) <= error(none(), x, weight, keep) * (1 + 1e-4)
    assert error(Affine(ridge), x, weight, keep) <= error(MeanBias(), x, weight, keep) * (1 + 1e-4) + 1e-3


def test_least_squares_is_that_of_a_textbook():
    x, weight, keep = case(3)
    expected = torch.linalg.lstsq(x[:, keep].double(), (x @ weight.T).double()).solution.T
    found = repaired(LeastSquares(SMALL), x, weight, keep).weight[:, keep]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_affine_is_that_of_a_textbook():
    x, weight, keep = case(4)
    design = torch.cat([x[:, keep], torch.ones(len(x), 1)], 1).double()
    expected = torch.linalg.lstsq(design, (x @ weight.T).double()).solution.T
    result = repaired(Affine(SMALL), x, weight, keep)
    torch.testing.assert_close(result.weight[:, keep], expected[:, :-1], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(result.bias, expected[:, -1], rtol=1e-2, atol=1e-2)


def test_inputs_that_were_always_zero_do_no_harm():
    x, weight, keep = case(5)
    x[:, keep.nonzero()[0]] = 0
    for repair in (LeastSquares(), Affine()):
        assert repaired(repair, x, weight, keep).weight.isfinite().all()


@pytest.mark.parametrize("kind", [LeastSquares, Affine])
@pytest.mark.parametrize("white", [True, False])
def test_the_ridge_is_the_best_on_the_batches_held_out(kind, white):
    x, weight, keep = case(6, inputs=30, tokens=2000)
    if white:  # nothing to learn, and few tokens: the least ridge fits noise
        x = torch.randn(100, 30, generator=torch.Generator().manual_seed(1))
    parts, rest = x.split(len(x) // 20), kind.needs(30)
    statistic = kind("held_out").gathers(30)
    for number, part in enumerate(parts):
        statistic.update(part)
        if number % 4 != 3:
            rest.update(part)
    held = torch.cat(parts[3::4]).double()

    def judged(ridge: float) -> float:
        result = kind(ridge).apply(weight, keep, rest)
        lost = held @ (weight.double() - result.weight).T
        return float((lost if result.bias is None else lost - result.bias).square().sum())

    best = min(RIDGES, key=judged)
    assert (best > min(RIDGES)) == white
    found = kind("held_out").apply(weight, keep, statistic)
    assert found.notes["ridge"] == best
    torch.testing.assert_close(found.weight, kind(best).apply(weight, keep, statistic).weight)


def test_too_little_text_to_hold_any_out_gets_the_usual_ridge():
    x, weight, keep = case(7)
    statistic = Affine("held_out").gathers(10)
    statistic.update(x)
    assert Affine("held_out").apply(weight, keep, statistic).notes["ridge"] == USUAL
