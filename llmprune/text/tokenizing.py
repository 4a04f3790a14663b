"""Text in, token ids out, without special tokens: a text as a whole, or one of any length part by part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 18  # characters of a long text that are tokenised at a time
NEAR = 512  # characters that are looked at on either side of a cut
TRIES = 32  # places that are looked at
EDGE = re.compile(r"(?<=\w)(?=\s)|(?<=\n)(?=\w)")


def tokenize(text: str, tokenizer: Any) -> Tensor:
    """The ids of a whole text, without special tokens."""
    return torch.tensor(_ids(text, tokenizer), dtype=torch.int64)


def _ids(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def tokens(parts: Iterable[str], tokenizer: Any) -> Iterator[Tensor]:
    """The ids of a text that comes in parts, and is never held as a whole; together those of `tokenize`.

    The text is cut where a word ends or a line begins, and only where the tokens before and after the cut
    are those that stand there when it is not cut. Where no such place is found the text is held until one is.
    """
    held, lead = "", ""
    for part in _short(parts):
        held += part
        cut = _cut(held, tokenizer) if len(held) > PIECE else 0
        if cut:
            yield _behind(lead, held[:cut], tokenizer)
            lead, held = _end(held[:cut]), held[cut:]
    yield _behind(lead, held, tokenizer)


def _short(parts: Iterable[str]) -> Iterator[str]:
    for part in parts:
        yield from (part[start : start + PIECE] for start in range(0, len(part), PIECE))


def _cut(text: str, tokenizer: Any) -> int:
    """The last place where a text can be cut, with some of it left to see that; 0 if there is none."""
    places = [found.start() for found in EDGE.finditer(text, len(text) - PIECE // 2, len(text) - NEAR)]
    for place in reversed(places[-TRIES:]):
        end = _end(text[:place])
        alone, together = _ids(end, tokenizer), _ids(end + text[place : place + NEAR], tokenizer)
        if together[: len(alone)] == alone:
            return place
    return 0


def _end(text: str) -> str:
    """The last words of a text."""
    near = text[-NEAR:]
    edge = EDGE.search(near, 1)
    return near[edge.start() :] if edge else near


def _behind(lead: str, text: str, tokenizer: Any) -> Tensor:
    """The ids of a text as they are behind another."""
    return tokenize(lead + text, tokenizer)[len(_ids(lead, tokenizer)) if lead else 0 :]
