"""A rate that is a share of a parameter's scale moves models of any scale alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmprune.recovery.distill import Distill
from llmprune.recovery.lora import Lora
from llmprune.training.rates import LEAST, scaled
from llmprune.training.teacher import Text
from llmprune.training.trainer import Course, train
from tests import tiny

RATE = 1e-2
WINDOWS = torch.randint(3, tiny.VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_a_step_moves_every_parameter_by_its_share(size: float, tmp_path: Path) -> None:
    model = tiny.model("qwen2")
    for parameter in model.parameters():
        parameter.data *= size
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, Text(), WINDOWS, WINDOWS, Course(RATE, windows=2, relative=True), tmp_path)
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs().max()
        mean_square = before[name].square().mean()
        assert moved <= RATE * max(LEAST, mean_square.sqrt()) * 1.01
    moved_at_all = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved_at_all) > len(before) / 2


def test_groups_keep_their_parameters_and_options() -> None:
    first, second, third = (torch.full((4,), value) for value in (0.5, -2.0, 0.0))
    groups = [
        {"params": [first, second], "lr": 0.1, "weight_decay": 0.3},
        {"params": [third], "lr": 0.1, "weight_decay": 0.0},
    ]
    found = scaled(groups)
    assert all(group["params"][0] is one for group, one in zip(found, (first, second, third), strict=True))
    assert [group["lr"] for group in found] == pytest.approx([0.05, 0.2, 0.1 * LEAST])
    assert [group["weight_decay"] for group in found] == [0.3, 0.3, 0.0]


def unasked() -> float:
    """What an absolute rate, or one that is given, has no use for."""
    raise AssertionError


def test_a_rate_that_is_given_goes_before() -> None:
    assert Distill(relative_rate=1e-3).rate(unasked) == (1e-3, True)
    given = (5e-5, False)
    assert Distill(learning_rate=5e-5).rate(unasked) == given
    assert Distill(learning_rate=5e-5, adapters=4).rate(unasked) == given
    assert Distill(adapters=4).rate(unasked) == Lora().rate(unasked) == (2e-4, False)


def test_the_farther_from_the_dense_model_the_longer_the_steps() -> None:
    asked = Distill()
    near, far, lost = (asked.rate(lambda loss=loss: loss) for loss in (0.2, 1.0, 9.0))
    assert near == (pytest.approx(2e-4), True)
    assert far == (pytest.approx(1e-3), True)
    assert lost == (2e-3, True)
    assert Distill(loss="text").rate(unasked) == (3e-4, True)
