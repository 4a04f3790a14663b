"""A cut tokenizer gives the same tokens for every text whose tokens have all stayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from llmprune.errors import RequestError
from llmprune.vocabulary import bpe
from llmprune.vocabulary.choice import closed
from tests.conftest import SHARED
from tests.vocabulary import tokenizers_here as here

LETTERS = "abc"


@st.composite
def any_tokenizers(draw: st.DrawFn) -> dict[str, Any]:
    """Random merges: several may make the same token, and some tokens can never come out."""
    tokens, merges = list(LETTERS), []
    for _ in range(draw(st.integers(1, 12))):
        pair = draw(st.tuples(st.sampled_from(tokens), st.sampled_from(tokens)))
        if pair not in merges and len("".join(pair)) < 9:
            merges.append(pair)
            tokens += [] if "".join(pair) in tokens else ["".join(pair)]
    numbers = draw(st.permutations(range(len(tokens))))
    vocab = dict(zip(tokens, numbers, strict=True))
    made = Tokenizer(models.BPE(vocab, merges, ignore_merges=draw(st.booleans())))
    data: dict[str, Any] = json.loads(made.to_str())
    if draw(st.booleans()):
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    return data


def ids(data: dict[str, Any], text: str) -> list[int]:
    return Tokenizer.from_str(json.dumps(data)).encode(text, add_special_tokens=False).ids


@given(any_tokenizers(), st.lists(st.text(LETTERS, max_size=12), min_size=1, max_size=6), st.data())
def test_texts_whose_tokens_stay_get_the_same_tokens(
    data: dict[str, Any], texts: list[str], draws: st.DataObject
) -> None:
    parts = bpe.parts(data)
    every = sorted(data["model"]["vocab"].values())
    wanted = draws.draw(st.sets(st.sampled_from(every))) | set(ids(data, texts[0]))
    kept = closed(wanted, parts)
    new = {old: number for number, old in enumerate(sorted(kept))}
    done = bpe.cut(data, new)
    for text in texts:
        before = ids(data, text)
        assert set(before) <= parts.keys(), "what comes out can be reached"
        if set(before) <= kept:
            assert ids(done, text) == [new[number] for number in before]


@given(any_tokenizers())
def test_a_token_that_can_be_reached_comes_out_of_its_own_text(data: dict[str, Any]) -> None:
    parts = bpe.parts(data)
    for token, number in data["model"]["vocab"].items():
        assert (ids(data, token) == [number]) == (number in parts)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_bytes_special_and_added_tokens_are_required(kind: str) -> None:
    data = json.loads(here.tokenizer(kind).backend_tokenizer.to_str())
    names = {number: token for token, number in bpe.vocabulary(data).items()}
    found = {names[number] for number in bpe.required(data)}
    assert set(here.SPECIAL) <= found
    assert len(found) == 256 + len(here.SPECIAL) + (kind == "byte level")
    assert ("<tool>" if kind == "byte level" else "<0xFF>") in found


def test_every_place_that_names_an_id_is_renumbered() -> None:
    data = json.loads(here.tokenizer("byte level").backend_tokenizer.to_str())
    unk, start, end = (bpe.vocabulary(data)[name] for name in here.SPECIAL)
    data["padding"] = {"pad_id": end, "pad_token": "</s>"}
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", end], "cls": ["<s>", start]}
    data["post_processor"] = {"type": "Sequence", "processors": [data["post_processor"], roberta]}
    new = {number: number + 1000 for number in bpe.vocabulary(data).values()}
    done = bpe.cut(data, new)
    template, roberta = done["post_processor"]["processors"]
    assert template["special_tokens"]["<s>"]["ids"] == [start + 1000]
    assert (roberta["sep"], roberta["cls"]) == (["</s>", end + 1000], ["<s>", start + 1000])
    assert done["padding"]["pad_id"] == end + 1000
    assert bpe.vocabulary(done) == {t: number + 1000 for t, number in bpe.vocabulary(data).items()}
    assert {unk, start, end} <= bpe.required(data)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ({"type": "WordPiece"}, "WordPiece"),
        ({"type": "Unigram"}, "Unigram"),
        ({"type": "BPE", "end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"type": "BPE"}, "BPE tokenizer of characters"),
    ],
)
def test_other_tokenizers_are_refused_by_name(model: dict[str, str], word: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}, "merges": [], **model}}))
    with pytest.raises(RequestError, match=word):
        bpe.read(tmp_path)


def test_a_folder_without_a_tokenizer_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has none; save its tokenizer"):
        bpe.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(RequestError, match="cannot be read"):
        bpe.read(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared models")
def test_a_real_tokenizer_with_byte_fallback_gives_the_same_tokens() -> None:
    data = bpe.read(SHARED / "models" / "stories15M")
    before = Tokenizer.from_str(json.dumps(data))
    lines = [line for line in here.text().split("\n") if line.strip()]
    texts = [line + tail for line, tail in zip(lines, [*lines[1:], ""], strict=True)]
    seen = [number for encoded in before.encode_batch(texts[::2]) for number in encoded.ids]
    kept = closed(bpe.required(data) | set(seen), bpe.parts(data))
    new = {old: number for number, old in enumerate(sorted(kept))}
    after = Tokenizer.from_str(json.dumps(bpe.cut(data, new)))
    for text in texts:
        dense = before.encode(text).ids
        if set(dense) <= kept:
            assert after.encode(text).ids == [new[number] for number in dense]
        assert after.decode(after.encode(text).ids) == before.decode(dense)
