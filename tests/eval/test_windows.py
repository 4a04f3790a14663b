"""Models of several tokenizers predict the same characters, each in its own tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llmprune_eval import evaluation
from llmprune_eval.windows import Protocol, settled, windows_of
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from llmprune.errors import RequestError
from tests import tiny

WORDS = "Ein Löffel für Ärzte, 12 Œuvres\n\nund ein naïver Café-Gast 日本語 sagt: nein. "


def by_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, but for a few pairs of them; letters with accents are several tokens."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    pairs = [("e", "i"), ("ei", "n"), ("Ġ", "s"), ("e", "r")]
    tokens = ["<s>", *letters, *("".join(pair) for pair in pairs)]
    made = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, pairs))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


def by_words() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are words with the space before them, as byte-level ones have it."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text(WORDS * 12, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(("stride", "bos"), [(None, False), (None, True), (20, False), (16, True)])
def test_every_tokenizer_predicts_the_same_characters(text: str, stride: int | None, bos: bool) -> None:
    tokenizers = (by_bytes(), by_words(), tiny.tokenizer())
    protocol = Protocol(32, None, stride, bos, tokenizers=tokenizers)
    protocol = settled(protocol, tokenizers[0], tiny.config("llama"))
    each = [list(windows_of(tokenizer, text, protocol)) for tokenizer in tokenizers]
    assert len({len(found) for found in each}) == 1 and len(each[0]) > 5
    for found in zip(*each, strict=True):
        assert len({window.size for window in found}) == 1
        assert max(len(window.ids) for window in found) <= 32
    own = [window.predicted for window in each[0]]  # a tokenizer of bytes gives its text back
    said = [tokenizers[0].decode(ids) for ids in own]
    assert [len(part.encode()) for part in said] == [window.size for window in each[0]]
    assert all(part in WORDS * 12 for part in said)
    if stride or bos:  # only then no window begins with what is context alone
        assert "".join(said) in WORDS * 12


def test_bits_per_byte_are_compared_on_the_same_bytes(tmp_path: Path, checkpoints: Any, text: str) -> None:
    other = tmp_path / "other"
    model = tiny.model("llama")
    model.resize_token_embeddings(300)
    model.save_pretrained(other)
    by_bytes().save_pretrained(other)
    names = {"baseline": str(checkpoints("llama")), "model": str(other), "again": str(checkpoints("llama"))}
    found = evaluation.evaluate(names, [text], Protocol(windows=3))
    (dense,), (pruned,), (again,) = (found[role]["perplexity"] for role in names)
    assert dense["bytes"] == pruned["bytes"] and dense["windows"] == pruned["windows"] == 3
    assert dense["predictions"] < pruned["predictions"]
    assert dense["tokenizers"] == pruned["tokenizers"] == sorted([dense["tokenizer"], pruned["tokenizer"]])
    assert "3 windows of at most 64 tokens, the same characters under 2 tokenizers" in pruned["protocol"]
    (row,) = found["model"]["comparison"]["perplexity"]
    assert row["measure"] == "bits_per_byte" and not row["comparable"]
    assert row["ratio"] == pytest.approx(pruned["bits_per_byte"] / dense["bits_per_byte"])
    assert again["perplexity"] == dense["perplexity"] and found["again"]["agreement"][0]["top1"] == 1
    shown = dict(evaluation.rows(found["model"]))
    assert f"{pruned['bits_per_byte']:.4f} bits per byte" in shown[f"  perplexity on {text}"]
    assert "perplexities cannot be compared" in shown[f"  {text} vs dense"]


def test_a_model_on_its_own_keeps_its_windows(checkpoints: Any, text: str) -> None:
    (alone,) = evaluation.evaluate({"model": str(checkpoints("llama"))}, [text], Protocol(16, 3))["model"][
        "perplexity"
    ]
    assert alone["tokenizers"] is None and alone["predictions"] == 3 * 15
    assert "3 windows of 16 tokens, stride" in alone["protocol"]


@pytest.mark.parametrize("stride", [None, 16])
def test_tokenizers_that_begin_a_text_differently_predict_the_same(text: str, stride: int | None) -> None:
    tokenizers = (by_words(), tiny.tokenizer("<s> $A"))
    asked = Protocol(32, None, stride, tokenizers=tokenizers)
    each = [
        list(windows_of(tokenizer, text, settled(asked, tokenizer, tiny.config("llama"))))
        for tokenizer in tokenizers
    ]
    assert [window.size for window in each[0]] == [window.size for window in each[1]]
    assert all(window.ids[0] == tokenizers[1].bos_token_id for window in each[1])
    assert max(len(window.ids) for windows in each for window in windows) <= 32


def test_what_cannot_be_cut_by_characters_is_refused(text: str, tmp_path: Path) -> None:
    class Slow:
        is_fast = False

    asked = Protocol(16, bos=False, tokenizers=(tiny.tokenizer(), Slow()))
    both = settled(asked, tiny.tokenizer(), tiny.config("llama"))
    with pytest.raises(RequestError, match="Slow does not say which characters a token covers"):
        next(windows_of(tiny.tokenizer(), text, both))
    short = tmp_path / "short.txt"
    short.write_text("one two three")
    asked = Protocol(16, tokenizers=(tiny.tokenizer(), by_words()))
    pair = settled(asked, tiny.tokenizer(), tiny.config("llama"))
    with pytest.raises(RequestError, match="fewer than one window of 16 tokens under every tokenizer"):
        next(windows_of(tiny.tokenizer(), str(short), pair))
