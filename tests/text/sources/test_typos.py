"""Typing errors are as many as said, always the same, and change letters alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmprune.errors import RequestError
from llmprune.text import sources


def test_one_of_twenty_letters_is_another(tmp_path: Path) -> None:
    text = "One two, THREE!\n12 é ß\n" * 2000
    (tmp_path / "a.txt").write_text(text)
    typed = sources.for_evaluation(f"typos:{tmp_path / 'a.txt'}").text("evaluation")
    assert typed == sources.for_evaluation(f"typos:{tmp_path / 'a.txt'}").text("evaluation")
    assert len(typed) == len(text)
    changed = [(a, b) for a, b in zip(text, typed, strict=True) if a != b]
    letters = sum(a.isascii() and a.isalpha() for a in text)
    assert len(changed) / letters == pytest.approx(0.05, abs=0.005)
    assert all(a.isascii() and a.isupper() == b.isupper() and b.isalpha() for a, b in changed)


def test_the_text_behind_the_prefix_must_be_there() -> None:
    with pytest.raises(RequestError, match=r"nowhere\.txt"):
        sources.for_evaluation("typos:nowhere.txt").text("evaluation")
    with pytest.raises(RequestError, match="perplexity: 'nonsense' is not"):
        sources.for_evaluation("typos:nonsense").text("evaluation")
