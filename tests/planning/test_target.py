"""A target says what is left; whatever else is said is refused in one sentence."""

from __future__ import annotations

import pytest

from llmprune.errors import RequestError
from llmprune.planning.target import parse


@pytest.mark.parametrize(
    ("said", "of", "goal"),
    [
        ("0.8x", "bytes", 800.0),
        (".5x", "bytes", 500.0),
        ("0.6KB", "bytes", 600.0),
        ("0.5KiB", "bytes", 512.0),
        ("1.25x-decode", "decode", 800.0),
    ],
)
def test_a_target_is_a_goal_of_what_the_dense_model_takes(said: str, of: str, goal: float) -> None:
    found = parse(said)
    assert found.of == of
    assert found.goal(1000.0) == pytest.approx(goal)


@pytest.mark.parametrize(
    "said", ["5", "", "x", "0x", "0.8", "-1x", "6 apples", "1.3x-prefill", "nanx", "1e3x"]
)
def test_what_is_no_target_is_refused(said: str) -> None:
    with pytest.raises(RequestError, match=r"0\.8x of|0\.8x\)"):
        parse(said)


@pytest.mark.parametrize(("said", "engine"), [("0.8x", "llama.cpp"), ("1.3x-decode", "vllm")])
def test_an_engine_is_one_that_measures_a_speed(said: str, engine: str) -> None:
    with pytest.raises(RequestError, match="engine: "):
        parse(said, engine)


def test_outputs_to_fit_are_asked_elsewhere() -> None:
    with pytest.raises(RequestError, match="--set target=dense"):
        parse("dense")


@pytest.mark.parametrize(
    ("said", "more"), [("1x", "less"), ("0.99x", "less"), ("1KB", "less"), ("0.9x-decode", "more")]
)
def test_what_the_model_has_already_is_refused(said: str, more: str) -> None:
    with pytest.raises(RequestError, match=f"already; ask for {more}"):
        parse(said).goal(1000.0)
