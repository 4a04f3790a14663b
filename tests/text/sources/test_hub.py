"""Data sets on the Hub: those that we know, which are pinned, and any other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import datasets
import pytest

from llmprune.errors import JobError, RequestError
from llmprune.text import sources, tables
from llmprune.text.sources.hub import Hub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is asked of the library of data sets, which has one document for everyone."""
    asked: list[dict[str, Any]] = []

    def load(**where: Any) -> Iterator[dict[str, str]]:
        asked.append(where)
        return iter([{"text": "words"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


@pytest.mark.parametrize("dataset", ["wikitext2", "c4", "someone/something"])
def test_a_data_set_out_of_reach_is_one_sentence(dataset: str) -> None:
    with pytest.raises(JobError, match="out of reach") as raised:
        sources.for_evaluation(dataset).text("calibration")
    assert dataset in str(raised.value)
    assert "builtin" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_data_set_that_keeps_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(where: dict[str, Any], column: str, dataset: str) -> Iterator[str]:
        yield "a document"
        time.sleep(5)

    monkeypatch.setattr(tables, "rows", silent)
    monkeypatch.setattr(tables, "TIMEOUT", 0.2)
    start = time.monotonic()
    with pytest.raises(JobError, match=r"nothing arrived .*use `builtin`"):
        Hub("someone/something").text("calibration")
    assert time.monotonic() - start < 3


def test_a_wrong_column_of_a_data_set_is_a_request_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda **where: iter([{"body": "words"}]))
    with pytest.raises(RequestError, match="text columns: body"):
        Hub("someone/something").text("calibration")


def test_the_asked_subset_and_split_are_read(asked: list[dict[str, Any]]) -> None:
    one = Hub("someone/something", subset="en", split="validation")
    assert one.text("calibration") == one.text("evaluation") == "words"
    where = {"path": "someone/something", "name": "en", "streaming": True}
    assert asked == [where | {"split": "validation"}, where | {"split": "test"}]


@pytest.mark.parametrize("dataset", ["wikitext2", "c4"])
def test_known_data_sets_are_pinned_and_their_halves_differ(
    asked: list[dict[str, Any]], dataset: str
) -> None:
    for half in ("calibration", "evaluation"):
        assert sources.for_evaluation(dataset).text(half) == "words"
    assert asked[0] != asked[1]
    assert all(len(where["revision"]) == 40 for where in asked)
