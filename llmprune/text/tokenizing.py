"""Text to token ids, without special tokens: a whole text at once, or a text of any length in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

PIECE = 1 << 18  # characters of a long text that are tokenized at a time
NEAR = 512  # characters to compare on either side of a cut
TRIES = 32  # positions to try for one cut
EDGE = re.compile(r"(?<=\w)(?=\s)|(?<=\n)(?=\w)")


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the ids of a whole text, without special tokens."""
    return torch.tensor(_ids(text, tokenizer), dtype=torch.int64)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # verbose=False: no warning that the text is longer than the model's context.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def tokens(parts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
    """Yield the ids of a text that comes in parts; joined, they equal those of `tokenize`.

    The text is cut at the end of a word or the start of a line, and only where the tokens on both sides are
    the same with and without the cut. Where no such position is found, the text is held until one is.
    """
    held, lead = "", ""
    for part in _pieces(parts):
        held += part
        cut = _cut_position(held, tokenizer) if len(held) > PIECE else 0
        if cut:
            yield _ids_after(lead, held[:cut], tokenizer)
            lead, held = _last_words(held[:cut]), held[cut:]
    yield _ids_after(lead, held, tokenizer)


def _pieces(parts: Iterable[str]) -> Iterator[str]:
    for part in parts:
        yield from (part[start : start + PIECE] for start in range(0, len(part), PIECE))


def _cut_position(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the last position where a text can be cut, at least NEAR before its end; 0 if there is none."""
    places = [found.start() for found in EDGE.finditer(text, len(text) - PIECE // 2, len(text) - NEAR)]
    for place in reversed(places[-TRIES:]):
        end = _last_words(text[:place])
        # A merge across the cut would change the tokens before it; comparing a few words is enough.
        alone, together = _ids(end, tokenizer), _ids(end + text[place : place + NEAR], tokenizer)
        if together[: len(alone)] == alone:
            return place
    return 0


def _last_words(text: str) -> str:
    """Return the last NEAR characters of a text, from the first word edge among them."""
    near = text[-NEAR:]
    edge = EDGE.search(near, 1)
    return near[edge.start() :] if edge else near


def _ids_after(lead: str, text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the ids of a text as they are when `lead` precedes it.

    SentencePiece tokenizers treat the start of a string as the start of a word, so a text cannot be tokenized
    alone in the middle of another.
    """
    return tokenize(lead + text, tokenizer)[len(_ids(lead, tokenizer)) if lead else 0 :]
