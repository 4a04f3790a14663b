"""Half of the reference manual calibrates, and the other half evaluates."""

from __future__ import annotations

from llmprune.text.sources.builtin import Builtin

MANUAL = Builtin("builtin")


def test_the_halves_share_no_document() -> None:
    halves = [MANUAL.documents(half) for half in ("calibration", "evaluation")]
    assert all(len("".join(half)) > 100_000 for half in halves)
    assert not set(halves[0]) & set(halves[1])


def test_the_halves_share_no_paragraph() -> None:
    halves = [MANUAL.text(half) for half in ("calibration", "evaluation")]
    paragraphs = [{p for p in half.split("\n\n") if len(p) > 200} for half in halves]
    assert min(map(len, paragraphs)) > 50
    assert not paragraphs[0] & paragraphs[1]
