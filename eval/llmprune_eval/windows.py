"""Which tokens of a text are predicted from which: windows of one length, the same for every model.

Models of several tokenizers get windows that cover the same characters, and predict the same of them.

Letters used in shapes: L tokens of one window, T tokens of a text, C characters where a text can be cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmprune.errors import RequestError
from llmprune.text import bos, sources, tokenizing
from llmprune.text.bos import Bos
from llmprune.text.sources.base import characters_for


@dataclass(frozen=True)
class Protocol:
    """How a text is cut into windows."""

    length: int | None = None
    """Tokens per window; the shortest context of the models or 2048, whichever is less, unless given."""

    windows: int | None = None
    """Only the first so many."""

    stride: int | None = None
    """Tokens from one window to the next; those that a window shares with the one before are context only."""

    bos: Bos = "auto"
    """Whether every window begins with BOS, in the place of a token of text; `auto` as the tokenizer does."""

    column: str | None = None
    """Of a table, the column that holds the text; `text` unless given."""

    tokenizers: tuple[Any, ...] = ()
    """Of all models that are compared, where they differ: windows then cover the same characters."""

    @property
    def apart(self) -> bool:
        """Once settled, whether windows can be drawn: those that share most of their text say the same."""
        assert self.stride is not None and self.length is not None
        return 2 * self.stride > self.length


@dataclass(frozen=True)
class Window:
    """A part of a text [L], and from which prediction on it counts: the tokens before are context only."""

    ids: Tensor
    first: int
    size: int | None = None
    """Bytes of text, in UTF-8, that the predicted tokens cover, where the text is at hand."""

    @property
    def predicted(self) -> Tensor:
        """The tokens whose predictions count."""
        return self.ids[1 + self.first :]

    def bytes(self, tokenizer: Any) -> int:
        """Bytes of text, in UTF-8, that the predicted tokens cover."""
        if self.size is not None:
            return self.size
        # decoded behind its context, as decoders drop a leading space
        whole, before = (
            tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            for ids in (self.ids, self.ids[: 1 + self.first])
        )
        return len(whole.encode()) - len(before.encode())


def settled(protocol: Protocol, tokenizer: Any, *configs: Any) -> Protocol:
    """A protocol with the length and stride that models of these configurations all get.

    Raises:
        RequestError: the windows are longer than the shortest context, or leave gaps, or there is no BOS.
    """
    contexts = [getattr(c.get_text_config(decoder=True), "max_position_embeddings", None) for c in configs]
    length = _length(protocol, min(filter(None, contexts), default=None))
    own = length - max(map(len, _begins(protocol, tokenizer)))
    stride = own if protocol.stride is None else protocol.stride
    if not 1 <= stride <= own:
        raise RequestError("stride", f"{stride} was asked, and windows hold {own} tokens of text")
    return replace(protocol, length=length, stride=stride)


def windows_of(tokenizer: Any, text: str, protocol: Protocol) -> Iterator[Window]:
    """The windows of a text under a settled protocol; no more of it is read than they need.

    Raises:
        RequestError: the text is shorter than one window, or the tokenizers cannot be compared.
    """
    found = (_shared if len(protocol.tokenizers) > 1 else _own)(tokenizer, text, protocol)
    return islice(found, protocol.windows)


def _own(tokenizer: Any, text: str, protocol: Protocol) -> Iterator[Window]:
    """Windows of exactly `length` tokens."""
    assert protocol.length is not None and protocol.stride is not None
    begin = torch.tensor(bos.tokens(tokenizer, protocol.bos, "bos"), dtype=torch.int64)
    own, stride = protocol.length - len(begin), protocol.stride
    parts = sources.for_evaluation(text, protocol.column).read("evaluation")
    left = torch.empty(0, dtype=torch.int64)
    unmade = max(0, len(begin) - 1)  # predictions within a beginning of several tokens, which is no text
    shared = None  # predictions of a window that the one before has made; before the first, none was made
    for ids in tokenizing.tokens(parts, tokenizer):
        left = torch.cat([left, ids])
        starts = range(0, len(left) - own + 1, stride)
        for start in starts:
            yield Window(torch.cat([begin, left[start : start + own]]), shared or unmade)
            shared = max(0, protocol.length - stride - 1)
        left = left[len(starts) * stride :]
    if shared is None:
        raise RequestError("perplexity", f"{text} has {len(left)} tokens, fewer than one window of {own}")


def _shared(tokenizer: Any, text: str, protocol: Protocol) -> Iterator[Window]:
    """Windows of at most `length` tokens under each tokenizer, cut where a token ends under all of them.

    The characters between two cuts, at most `stride` tokens, are predicted; the tokens before them are
    context. Where there are none, those up to the next cut are context. So all models predict the same
    characters. The text is held as a whole, or 16 characters for each token of the windows asked.
    """
    assert protocol.length is not None and protocol.stride is not None
    limit = None if protocol.windows is None else characters_for(protocol.windows, protocol.length)
    whole = sources.for_evaluation(text, protocol.column).text("evaluation", limit)
    ids, own = _with_ends(tokenizer, whole)
    ends = [own, *(_with_ends(one, whole)[1] for one in protocol.tokenizers)]
    cuts = np.union1d([0], reduce(np.intersect1d, ends))
    before = [np.searchsorted(each, cuts, side="right") for each in ends]  # tokens before each cut [C]
    begin, *others = _begins(protocol, tokenizer)
    overlap = protocol.length - max(map(len, (begin, *others))) - protocol.stride
    parts = list(_between(before, protocol.stride))
    if not parts:
        said = f"{text} has fewer than one window of {protocol.stride} tokens under every tokenizer"
        raise RequestError("perplexity", f"{said}; give a longer text or a smaller --length")
    for start, end in parts:
        first = max(0, before[0][start] - overlap)
        # With nothing in front of it, the first token of a window is predicted by no model.
        known = start if all((begin, *others)) or (start and overlap) else start + 1
        part = torch.cat([torch.tensor(begin, dtype=torch.int64), ids[first : before[0][end]]])
        size = len(whole[cuts[known] : cuts[end]].encode())
        yield Window(part, int(before[0][known] - first + len(begin) - 1), size)


def _between(before: list[NDArray[np.int64]], most: int) -> Iterator[tuple[int, int]]:
    """The cuts that parts of a text lie between, each part at most so many tokens under every tokenizer.

    Args:
        before: how many tokens of each tokenizer are before each cut [C].
        most: tokens of a part.
    """

    def furthest(start: int) -> int:
        return min(int(np.searchsorted(each, each[start] + most, side="right")) - 1 for each in before)

    start = 0
    while (end := furthest(start)) < len(before[0]) - 1:  # what is left then fills no window
        if end < start + 2:  # too near for a context and a prediction
            start += 1
            continue
        yield start, end
        start = end


def _with_ends(tokenizer: Any, text: str) -> tuple[Tensor, NDArray[np.int64]]:
    """The ids of a text, and the character that each token ends before [T]."""
    if not tokenizer.is_fast:
        asked = "the models' tokenizers differ, so their windows are cut by characters"
        found = f"{type(tokenizer).__name__} does not say which characters a token covers"
        raise RequestError("tokenizer", f"{asked}, and {found}; measure the models one at a time")
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = np.array(made["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 1]
    return torch.tensor(made["input_ids"], dtype=torch.int64), np.maximum.accumulate(ends)


def _length(protocol: Protocol, context: int | None) -> int:
    length = min(2048, context or 2048) if protocol.length is None else protocol.length
    if length < 2:
        raise RequestError("length", f"{length} was asked, and a window needs 2 tokens to make a prediction")
    if context and length > context:
        raise RequestError("length", f"{length} tokens were asked, and the model's context is {context}")
    return length


def _begins(protocol: Protocol, tokenizer: Any) -> list[tuple[int, ...]]:
    """What a window begins with: under this tokenizer, then under those that it is compared with."""
    return [bos.tokens(one, protocol.bos, "bos") for one in (tokenizer, *protocol.tokenizers)]
