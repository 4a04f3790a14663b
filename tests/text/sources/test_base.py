"""Documents become windows of tokens, the same on every machine, or one sentence says why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprune.errors import RequestError
from llmprune.text import sources
from llmprune.text.sources import base
from llmprune.text.sources.base import Amount, Documents, Half
from llmprune.text.windows import Windows
from tests import tiny
from tests.text.sources.lent import access


def windows(dataset: str | Path, samples: int, length: int, seed: int = 0) -> Windows:
    source = sources.for_calibration(str(dataset))
    return source.windows(Amount(samples, length, seed), access(tokenizer=tiny.tokenizer))


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 9), length=st.integers(2, 40), seed=st.integers(0, 2**31 - 1))
def test_windows_are_runs_of_the_text(samples: int, length: int, seed: int) -> None:
    tokenised = []

    def tokenize(text: str, tokenizer: Any) -> torch.Tensor:
        tokenised.append(own(text, tokenizer))
        return tokenised[-1]

    own = base.tokenize
    with mock.patch.object(base, "tokenize", tokenize):
        found, again = (windows("builtin", samples, length, seed) for _ in range(2))
    assert found.tokens.shape == (samples, length)
    assert found.tokens.dtype == torch.int64
    runs = {tuple(run) for run in tokenised[0].unfold(0, length, 1).tolist()}
    assert {tuple(window) for window in found.tokens.tolist()} <= runs
    assert torch.equal(again.tokens, found.tokens)


def test_seeds_place_the_windows() -> None:
    drawn = [windows("builtin", 8, 32, seed) for seed in (0, 1, 2)]
    assert len({found.record()["sha256"] for found in drawn}) == 3
    assert [found.seed for found in drawn] == [0, 1, 2]
    assert {found.dataset for found in drawn} == {"builtin"}


def test_windows_hold_no_special_tokens(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a b c d e f g h " * 20)
    known = tiny.tokenizer().convert_tokens_to_ids(list("abcdefgh"))
    assert set(windows(file, 50, 8).tokens.flatten().tolist()) == set(known)


def test_a_text_of_one_window_gives_that_window(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a b c d")
    assert windows(file, 3, 4).tokens.tolist() == [tiny.tokenizer().convert_tokens_to_ids(list("abcd"))] * 3


def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("a b c")
    with pytest.raises(RequestError, match=r"has 3 tokens, fewer than one window of 4") as raised:
        windows(file, 128, 4)
    assert raised.value.field == "calibration"


def test_long_words_are_not_mistaken_for_too_little_text(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text(("Ä" * 60 + " ") * 500)
    assert windows(file, 1, 16).tokens.shape == (1, 16)


def test_windows_ask_for_text_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def text(self: Documents, half: Half, limit: int, tokenizer: Any) -> str:
        limits.append(limit)
        return "a b c d " * 100

    monkeypatch.setattr(Documents, "text", text)
    windows("builtin", 1000, 10)
    windows("builtin", 2000, 10)
    assert limits[1] == 2 * limits[0] >= 2 * 1000 * 10


@dataclass(frozen=True)
class Listed(Documents):
    texts: tuple[str, ...] = ()

    def documents(self, half: Half) -> Iterator[str]:
        yield from self.texts


TEXTS = ("The first document is about ants.", "The second one is about bees.", "A third: cats.")


@pytest.mark.parametrize("limit", [1, 32, 33, 34, 60, 61, 1000])
def test_no_more_is_read_than_the_limit(limit: int) -> None:
    text = Listed("listed", TEXTS).text("calibration", limit)
    assert "\n\n".join(TEXTS).startswith(text)
    assert len(text.replace("\n\n", "")) == min(limit, sum(map(len, TEXTS)))


def test_documents_past_the_limit_are_not_asked_for() -> None:
    given = []

    class Endless(Documents):
        def documents(self, half: Half) -> Iterator[str]:
            while True:
                given.append(half)
                yield "x" * 100

    assert len(Endless("web").text("evaluation", 1000).replace("\n\n", "")) == 1000
    assert given == ["evaluation"] * 10


@pytest.mark.parametrize(("half", "field"), base.OPTION.items())
@pytest.mark.parametrize("texts", [(), ("",), (" \n\t", "\n")])
def test_documents_without_a_word_are_refused(half: Half, field: str, texts: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=f"^{field}: listed holds no text$"):
        Listed("listed", texts).text(half)
