"""Several models are measured alike, and what is wrong with one of them is said before any is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from llmprune_eval import evaluation, perplexity
from llmprune_eval.windows import Protocol

from llmprune.errors import RequestError
from tests import tiny


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text(" ".join("abcdefgh" * 30))
    return str(file)


def test_models_of_different_contexts_are_measured_on_the_same_windows(tmp_path, checkpoints, text):
    short = tiny.save("llama", tmp_path / "short")
    model = tiny.model("llama")
    model.config.max_position_embeddings = 24
    model.save_pretrained(short)
    names = {"model": str(checkpoints("llama")), "baseline": str(short)}
    found = evaluation.evaluate(names, [text], Protocol())
    (own,), (dense,) = found["model"]["perplexity"], found["baseline"]["perplexity"]
    assert own["length"] == dense["length"] == 24
    assert own["perplexity"] == pytest.approx(dense["perplexity"])


def test_models_that_begin_texts_differently_are_compared_by_their_bits(tmp_path, checkpoints, text):
    begun = tiny.save("llama", tmp_path / "begun")
    tiny.tokenizer("<s> $A").save_pretrained(begun)
    names = {"model": str(begun), "baseline": str(checkpoints("llama"))}
    found = evaluation.evaluate(names, [text], Protocol(16))
    (own,), (dense,) = found["model"]["perplexity"], found["baseline"]["perplexity"]
    assert (own["bos"], own["stride"], dense["bos"], dense["stride"]) == (True, 15, False, 16)
    (row,) = found["model"]["comparison"]["perplexity"]
    assert (row["measure"], row["comparable"]) == ("bits_per_byte", False)
    alike = evaluation.evaluate(names, [text], Protocol(16, bos=True))
    assert alike["model"]["comparison"]["perplexity"][0]["ratio"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("others", "texts", "said"),
    [
        (["nowhere"], [], "model: 'nowhere' is no folder"),
        ([], ["nothere.txt"], "perplexity: there is no file nothere.txt"),
        ([], ["short.txt"], "fewer than one window"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_measured(
    others, texts, said, checkpoints, text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("a b c")
    monkeypatch.setattr(perplexity, "measure", lambda *_: pytest.fail("measured"))
    names = {str(n): name for n, name in enumerate([str(checkpoints("llama")), *others])}
    with pytest.raises(RequestError, match=said):
        evaluation.evaluate(names, [text, *texts], Protocol())
