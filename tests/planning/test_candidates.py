"""Candidates land on the goal as it is counted, and are recipes like any other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprune.checkpoint import source
from llmprune.errors import RequestError
from llmprune.planning.candidates import candidates
from llmprune.planning.prices import Prices, bytes_of
from llmprune.planning.target import parse
from tests import tiny

LLAMA = Prices(
    whole=538e6,
    block=14e6,
    inner=10.6e6,
    row=2304,
    tables=1,
    blocks=30,
    removable=28,
    rows=49152,
    units=1536,
    step=64,
    mixture=False,
)
MIXTURE = Prices(
    whole=1000.0,
    block=40.0,
    inner=32.0,
    row=0.1,
    tables=1,
    blocks=20,
    removable=18,
    rows=2000,
    units=8,
    step=1,
    mixture=True,
)
TEXT = {"samples": 4, "length": 16}


@given(st.floats(0.3, 0.97))
def test_whatever_lands_takes_what_was_asked(times: float) -> None:
    goal = round(times, 4) * LLAMA.whole
    for one in candidates(LLAMA, parse(f"{times:.4f}x")):
        taken = one.rows * LLAMA.row + one.blocks * LLAMA.block
        taken += one.inner * LLAMA.inner * (LLAMA.blocks - one.blocks)
        assert one.expected == pytest.approx(LLAMA.whole - taken)
        assert abs(one.expected / goal - 1) <= 0.02
        assert one.blocks <= LLAMA.removable
        assert 0 <= one.inner < 1
        assert (LLAMA.rows - one.rows) % 64 == 0


def test_every_mix_is_there_where_the_model_has_room_for_it() -> None:
    names = {one.name for one in candidates(LLAMA, parse("0.9x"))}
    assert names == {
        "width",
        "depth",
        "vocabulary",
        "depth and width",
        "vocabulary and width",
        "vocabulary and depth",
    }


def test_a_candidate_of_two_parts_is_a_recipe_of_two_steps() -> None:
    one = next(c for c in candidates(LLAMA, parse("0.8x")) if c.name == "vocabulary and width")
    table, width = one.recipe(LLAMA, TEXT, counts=False).every_step
    assert (table.sites.shares, width.sites.shares) == ("rows", "units")
    assert table.calibration.source.dataset == "none"
    assert width.calibration.samples == 4
    assert width.sparsity == pytest.approx(one.inner)


def test_experts_of_a_mixture_go_one_by_one() -> None:
    found = [one for one in candidates(MIXTURE, parse("0.84x")) if one.name == "width"]
    assert [8 * one.inner for one in found] == [2.0]
    assert found[0].recipe(MIXTURE, TEXT, counts=True).sites.shares == "experts"


def test_an_unreachable_goal_names_the_nearest() -> None:
    with pytest.raises(
        RequestError, match=r"0\.01x was asked, and the nearest that this model reaches is 0\."
    ):
        candidates(LLAMA, parse("0.01x"))


def test_bytes_are_counted_from_shapes(checkpoints: tiny.Checkpoints) -> None:
    found = source.find(str(checkpoints("llama")))
    prices = bytes_of(found)
    tensors = found.tensors
    block = sum(one.bytes for key, one in tensors.items() if ".layers.1." in key)
    assert prices.whole == sum(one.bytes for one in tensors.values())
    assert prices.block == pytest.approx(block)
    assert prices.inner == pytest.approx(
        sum(tensors[f"model.layers.1.mlp.{n}_proj.weight"].bytes for n in NAMES)
    )
    assert prices.row == 2 * 4 * 32  # embedding and head, float32
    assert (prices.blocks, prices.removable, prices.units) == (3, 1, 48)


NAMES = ("gate", "up", "down")
