"""Every window begins as the tokenizer begins a text, is as long as without, and holds the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmprune.errors import RequestError
from llmprune.text import bos, sources
from llmprune.text.bos import Bos
from llmprune.text.calibration import Calibration
from llmprune.text.sources.base import Amount, Documents
from llmprune.text.tokenizing import tokenize
from llmprune.text.windows import Windows
from tests import tiny
from tests.conftest import SHARED
from tests.text.sources.lent import access
from tests.text.test_sources import DATASETS, EVERY

BEGUN = "<s> $A"
WORDS = " ".join("abcdefghijklmnopqrstuvwxyz" * 20)
REAL = SHARED / "models" / "stories15M"

# One holds no windows; the other needs a chat template (`sources/test_answers.py`).
TEXTS = [name for name in EVERY if name not in ("none", "answers")]


def windows(asked: dict[str, Any], length: int, tokenizer: PreTrainedTokenizerBase, **lent: Any) -> Windows:
    """What a calibration gives with this tokenizer."""
    lent = {"tokenizer": lambda: tokenizer, "cache_key": lambda: None, **lent}
    return Calibration(**asked).windows(length, access(**lent))


@pytest.mark.parametrize(
    ("template", "auto", "always"),
    [
        (None, (), (1,)),
        ("$A", (), (1,)),
        (BEGUN, (1,), (1,)),
        ("<s> $A </s>", (1,), (1,)),
        ("$A </s>", (), (1,)),
        ("<s> <pad> $A", (1, 0), (1, 0)),
        ("</s> $A", (2,), (2,)),
    ],
)
def test_the_beginning_is_what_the_tokenizer_puts_in_front(
    template: str | None, auto: tuple[int, ...], always: tuple[int, ...], tmp_path: Path
) -> None:
    tiny.tokenizer(template).save_pretrained(tmp_path)
    for tokenizer in (tiny.tokenizer(template), AutoTokenizer.from_pretrained(tmp_path)):
        found = [bos.tokens(tokenizer, asked, "bos") for asked in ("auto", True, False)]
        assert found == [auto, always, ()]


def test_a_beginning_that_the_tokenizer_lacks_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = None
    assert bos.tokens(tokenizer, "auto", "bos") == ()
    with pytest.raises(RequestError, match=r"^calibration\.bos: true was asked, .* no BOS token; give"):
        windows({"bos": True}, 8, tokenizer)


def test_windows_without_room_for_text_are_refused() -> None:
    with pytest.raises(RequestError, match=r"^calibration\.length: 2 was asked, and BOS takes 2; give"):
        windows({}, 2, tiny.tokenizer("<s> <pad> $A"))


@pytest.mark.parametrize(
    ("value", "found"), [("auto", "auto"), (True, True), ("True", True), (False, False), ("false", False)]
)
def test_the_option_is_one_of_three(value: object, found: Bos) -> None:
    assert bos.parse(value, "bos") == found == Calibration(bos=value).bos


@pytest.mark.parametrize("value", ["", "yes", 1, None, [], {"auto": 1}])
def test_any_other_option_is_refused(value: object) -> None:
    with pytest.raises(RequestError, match=r"^bos: .* was asked; give auto, true or false$"):
        bos.parse(value, "bos")


@settings(max_examples=25, deadline=None)
@given(
    template=st.sampled_from([None, BEGUN, "<s> <pad> $A </s>"]),
    asked=st.sampled_from(["auto", True, False]),
    samples=st.integers(1, 9),
    length=st.integers(3, 40),
    seed=st.integers(0, 2**31 - 1),
)
def test_windows_keep_their_length_and_hold_the_text_behind_the_beginning(
    tmp_path_factory: pytest.TempPathFactory,
    template: str | None,
    asked: Bos,
    samples: int,
    length: int,
    seed: int,
) -> None:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(WORDS)
    tokenizer = tiny.tokenizer(template)
    options = {"dataset": str(file), "samples": samples, "seed": seed, "bos": asked}
    found, begin = windows(options, length, tokenizer), bos.tokens(tokenizer, asked, "bos")
    assert found.tokens.shape == (samples, length)
    assert found.tokens.dtype == torch.int64
    assert found.record().get("bos") == bool(begin)
    runs = tokenize(WORDS, tokenizer).unfold(0, length - len(begin), 1).tolist()
    for window in found.tokens.tolist():
        assert tuple(window[: len(begin)]) == begin
        assert window[len(begin) :] in runs


@pytest.fixture
def lent(checkpoints: tiny.Checkpoints, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model for the sources that generate, and words for those that read."""
    monkeypatch.setattr(Documents, "text", lambda *_: WORDS)
    return {
        "whole_model": lambda: tiny.model("llama"),
        "store": lambda: tiny.streamed(checkpoints("llama")),
    }


@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_every_source_gives_windows_that_begin_so(name: str, lent: dict[str, Any]) -> None:
    asked = {"dataset": DATASETS.get(name, name), "samples": 5, "seed": 2}
    begun = windows(asked, 9, tiny.tokenizer(BEGUN), **lent)
    assert begun.tokens.shape == (5, 9)
    assert begun.tokens[:, 0].tolist() == [1] * 5
    assert begun.record().get("bos") is True
    forced = windows(asked | {"bos": True}, 9, tiny.tokenizer(), **lent)
    assert torch.equal(forced.tokens, begun.tokens)


@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_every_source_is_as_before_where_nothing_is_added(name: str, lent: dict[str, Any]) -> None:
    dataset = DATASETS.get(name, name)
    plain = access(tokenizer=tiny.tokenizer, cache_key=lambda: None, **lent)
    before = sources.for_calibration(dataset).windows(Amount(5, 9, 2), plain).tokens
    asked = {"dataset": dataset, "samples": 5, "seed": 2}
    auto = windows(asked, 9, tiny.tokenizer(), **lent)
    refused = windows(asked | {"bos": False}, 9, tiny.tokenizer(BEGUN), **lent)
    assert torch.equal(auto.tokens, before)
    assert torch.equal(refused.tokens, before)
    assert auto.record().get("bos") is refused.record().get("bos") is False


def test_the_model_continues_the_beginning_that_windows_keep(lent: dict[str, Any]) -> None:
    """Without, it starts from its own BOS, which is the same token, and that is dropped."""
    kept = windows({"dataset": "self", "samples": 3}, 12, tiny.tokenizer(BEGUN), **lent)
    dropped = windows({"dataset": "self", "samples": 3, "bos": False}, 11, tiny.tokenizer(), **lent)
    assert torch.equal(kept.tokens[:, 1:], dropped.tokens)
    other = windows({"dataset": "self", "samples": 3}, 12, tiny.tokenizer("</s> $A"), **lent)
    assert not torch.equal(other.tokens[:, 1:], dropped.tokens)


@torch.no_grad()
def test_redrawn_tokens_follow_from_the_beginning(lent: dict[str, Any]) -> None:
    drawn, again = (
        windows({"dataset": "synthetic", "samples": 3, "redraws": n}, 9, tiny.tokenizer(BEGUN), **lent).tokens
        for n in (0, 1)
    )
    assert again[:, 0].tolist() == [1] * 3
    assert not torch.equal(again[:, 1], drawn[:, 1])


@pytest.mark.parametrize("dataset", ["self", "synthetic"])
@torch.no_grad()
def test_cached_texts_of_other_beginnings_are_other_texts(dataset: str, lent: dict[str, Any]) -> None:
    asked = {"dataset": dataset, "samples": 2} | ({"redraws": 1} if dataset == "synthetic" else {})
    kept = lent | {"cache_key": lambda: {"weights": "these"}}
    each = [windows(asked, 9, tiny.tokenizer(t), **kept).tokens for t in (BEGUN, "</s> $A") * 2]
    assert torch.equal(each[0], each[2]) and torch.equal(each[1], each[3])
    assert not torch.equal(each[0][:, 1:], each[1][:, 1:])


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/models/stories15M")
def test_a_real_tokenizer_begins_windows_as_it_begins_a_text(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(REAL)
    file = tmp_path / "text.txt"
    file.write_text("Once upon a time there was a dog.")
    whole = tokenizer(file.read_text())["input_ids"]
    assert whole[0] == tokenizer.bos_token_id
    found = windows({"dataset": str(file), "samples": 2}, len(whole), tokenizer)
    assert found.tokens.tolist() == [whole] * 2
