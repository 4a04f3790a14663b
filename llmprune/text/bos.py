"""The tokens in front of every window (BOS): by default those that the tokenizer puts before a text."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedTokenizerBase

from llmprune.errors import RequestError

Bos = bool | Literal["auto"]  # `auto` is whatever the tokenizer does
PLAIN = "a plain text"
WORDS: dict[str, Bos] = {"auto": "auto", "true": True, "false": False}


def parse(value: object, field: str) -> Bos:
    """Return what a recipe or a command line asks for.

    Args:
        value: a boolean, or one of `WORDS`.
        field: names the option in the error.

    Raises:
        RequestError: it is none of them.
    """
    word = str(value).lower()
    if word not in WORDS:
        raise RequestError(field, f"{value!r} was asked; give auto, true or false")
    return WORDS[word]


def tokens(tokenizer: PreTrainedTokenizerBase, bos: Bos, field: str) -> tuple[int, ...]:
    """Return the ids that every window begins with; none where no BOS is asked for.

    Args:
        tokenizer: the model's.
        bos: `auto` for the tokenizer's own beginning, True for BOS even if the tokenizer adds none.
        field: names the option in the error.

    Raises:
        RequestError: BOS is asked for, and the tokenizer has none.
    """
    if bos is False:
        return ()
    own = _added_in_front(tokenizer)
    if own or bos == "auto":
        return own
    if tokenizer.bos_token_id is None:
        raise RequestError(field, "true was asked, and the tokenizer has no BOS token; give auto or false")
    return (int(tokenizer.bos_token_id),)


def _added_in_front(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special tokens before a text; those behind it, such as an end token, are left out."""
    plain, whole = (
        list(tokenizer(PLAIN, add_special_tokens=special)["input_ids"]) for special in (False, True)
    )
    starts = range(len(whole) - len(plain) + 1)
    start = next((start for start in starts if whole[start : start + len(plain)] == plain), 0)
    return tuple(whole[:start])
