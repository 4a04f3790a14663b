"""A mix takes from every text as many windows as it says, or in these proportions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprune.errors import RequestError
from llmprune.text import sources
from llmprune.text.calibration import calibration_of
from llmprune.text.sources.base import Amount
from llmprune.text.sources.mix import Mix
from tests import tiny
from tests.text.sources.lent import access

FILLED = {"a": "one two three four ", "b": "five six seven eight "}


@pytest.fixture
def mix(tmp_path: Path) -> str:
    for name, words in FILLED.items():
        (tmp_path / f"{name}.txt").write_text(words * 50)
    return f"{tmp_path / 'a.txt'}:6, {tmp_path / 'b.txt'}:2"


def test_every_text_gives_its_windows_and_the_record_says_so(mix: str) -> None:
    asked = calibration_of({"dataset": mix, "length": 8, "bos": False})
    assert asked.samples == 8
    found = asked.windows(8, access(tokenizer=tiny.tokenizer))
    record = found.record()
    assert [part["samples"] for part in record["parts"]] == [6, 2]
    assert record["parts"][0]["dataset"].endswith("a.txt")
    assert record["parts"][0]["sha256"] != record["parts"][1]["sha256"]
    alone = sources.for_calibration(record["parts"][1]["dataset"]).windows(
        Amount(2, 8, 0), access(tokenizer=tiny.tokenizer)
    )
    rows = {tuple(row) for row in found.tokens.tolist()}
    assert {tuple(row) for row in alone.tokens.tolist()} <= rows


@given(st.lists(st.integers(1, 999), min_size=1, max_size=5), st.integers(1, 400))
def test_another_number_of_samples_is_shared_out(numbers: list[int], samples: int) -> None:
    text = Mix(",".join(f"builtin:{number}" for number in numbers))
    counts = text._counts(samples)
    assert sum(counts) == samples
    total = sum(numbers)
    assert all(abs(n - samples * number / total) < 1 for n, number in zip(counts, numbers, strict=True))


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    asked = calibration_of({"dataset": f"{tmp_path / 'absent.txt'}:2,builtin:2", "length": 8})
    with pytest.raises(RequestError, match=r"absent\.txt"):
        asked.windows(8, access(tokenizer=tiny.tokenizer))


def test_a_mix_can_hold_what_the_model_writes() -> None:
    assert Mix("builtin:2,self:2").needs_whole_model
    assert not Mix("builtin:2").needs_whole_model
