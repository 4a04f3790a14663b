"""How surprised a model is by a text: exp of the mean negative log-likelihood per token.

Unless asked otherwise windows do not overlap, the tail that fills no window is dropped, every window begins
as its tokenizer begins a text (with BOS, or with no special token), and each window of L tokens makes L - 1
predictions, so that of the token after BOS counts. A figure means nothing without these choices, so they
travel with it.

Letters used in shapes: N windows, L tokens of one window.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llmprune.errors import JobError, RequestError
from llmprune.progress import track
from llmprune.text import bos, sources, tokenizing
from llmprune.text.bos import Bos
from llmprune_eval import logits

LARGEST = 700.0  # nats; beyond, the exponential is no float
BOS = {True: "a BOS in front of each, whose prediction counts", False: "no BOS added"}


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


@dataclass(frozen=True)
class Window:
    """A part of a text [L], and from which prediction on it counts: the tokens before are context only."""

    ids: Tensor
    first: int

    @property
    def predicted(self) -> Tensor:
        """The tokens whose predictions count."""
        return self.ids[1 + self.first :]


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and the protocol that it was measured with."""

    perplexity: float
    bits_per_byte: float
    dataset: str
    split: str
    length: int
    stride: int
    bos: bool
    tokenizer: str
    windows: int
    predictions: int
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with the stamp."""
        return {**asdict(self), "protocol": self.protocol}

    @property
    def protocol(self) -> str:
        """The stamp that is printed beside the figure."""
        return (
            f"{self.dataset} ({self.split}), {self.windows} windows of {self.length} tokens, "
            f"stride {self.stride}, {BOS[self.bos]}, {self.dtype}, "
            f"tokenizer {self.tokenizer}"
        )


def measure(model: Any, tokenizer: Any, text: str, protocol: Protocol | None = None) -> Perplexity:
    """The perplexity of a model on a text.

    Args:
        model: a causal language model, with its weights where it computes.
        tokenizer: the model's.
        text: as `--calibration`; data sets that llmprune knows give their evaluation half.
        protocol: how it is cut into windows.

    Raises:
        RequestError: the text is shorter than one window, the window longer than the model's context, or the
            tokenizer another model's.
        JobError: the loss is no number.
    """
    asked = settled(protocol or Protocol(), tokenizer, model.config)
    total, predictions, size, count = 0.0, 0, 0, 0
    for window in track(windows_of(tokenizer, text, asked), f"perplexity on {text}", asked.windows):
        require_known(model, int(window.ids.max()))
        total += loss_from(model, window.ids, window.first)
        predictions += len(window.predicted)
        size += _bytes(tokenizer, window)
        count += 1
    mean = total / predictions
    if not mean < LARGEST:
        raise JobError(f"the model's mean loss on {text} is {mean}, so its perplexity is not a number")
    assert asked.length is not None and asked.stride is not None and asked.bos != "auto"
    return Perplexity(
        perplexity=math.exp(mean),
        bits_per_byte=total / math.log(2) / max(size, 1),
        dataset=text,
        split=sources.for_evaluation(text).evaluation_split,
        length=asked.length,
        stride=asked.stride,
        bos=asked.bos,
        tokenizer=stamp(tokenizer),
        windows=count,
        predictions=predictions,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )


def require_known(model: Any, largest: int) -> None:
    """Refuse a tokenizer whose largest id has no embedding.

    Raises:
        RequestError: it says what was given and what the model knows.
    """
    known = len(model.get_input_embeddings().weight)
    if largest >= known:
        said = f"it gives the id {largest}, and the model knows {known}; put the model's own beside it"
        raise RequestError("tokenizer", said)


def _bytes(tokenizer: Any, window: Window) -> int:
    """What a window predicts of the text; decoded behind its context, as decoders drop a leading space."""
    context = window.ids[: 1 + window.first]
    whole, before = (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (window.ids, context)
    )
    return len(whole.encode()) - len(before.encode())


def stamp(tokenizer: Any) -> str:
    """The same for tokenizers that give the same ids to the same tokens."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(vocabulary.encode()).hexdigest()[:8]
    return f"{type(tokenizer).__name__}, {len(tokenizer)} tokens ({digest})"


def settled(protocol: Protocol, tokenizer: Any, *configs: Any) -> Protocol:
    """A protocol with the length and stride that models of these configurations all get, and BOS decided.

    Raises:
        RequestError: the windows are longer than the shortest context, or leave gaps, or there is no BOS.
    """
    contexts = [getattr(c.get_text_config(decoder=True), "max_position_embeddings", None) for c in configs]
    length = _length(protocol, min(filter(None, contexts), default=None))
    begin = bos.tokens(tokenizer, protocol.bos, "bos")
    own = length - len(begin)
    stride = own if protocol.stride is None else protocol.stride
    if not 1 <= stride <= own:
        raise RequestError("stride", f"{stride} was asked, and windows hold {own} tokens of text")
    return replace(protocol, length=length, stride=stride, bos=bool(begin))


def windows_of(tokenizer: Any, text: str, protocol: Protocol) -> Iterator[Window]:
    """The windows of a text under a settled protocol; no more of it is read than they need.

    Raises:
        RequestError: the text is shorter than one window.
    """
    return islice(_windows_of(tokenizer, text, protocol), protocol.windows)


def _windows_of(tokenizer: Any, text: str, protocol: Protocol) -> Iterator[Window]:
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


def _length(protocol: Protocol, context: int | None) -> int:
    length = min(2048, context or 2048) if protocol.length is None else protocol.length
    if length < 2:
        raise RequestError("length", f"{length} was asked, and a window needs 2 tokens to make a prediction")
    if context and length > context:
        raise RequestError("length", f"{length} tokens were asked, and the model's context is {context}")
    return length


def window_loss(model: Any, window: Tensor) -> float:
    """Mean negative log-likelihood of the tokens of one window [L] but its first, in nats."""
    return loss_from(model, window, 0) / (len(window) - 1)


def loss_from(model: Any, window: Tensor, first: int) -> float:
    """Negative log-likelihood, in nats, of the tokens of a window [L] from prediction `first` on.

    Prediction i is that of token i + 1.
    """
    total = 0.0
    for rows, piece in logits.pieces(model, window):
        begin, end = max(rows.start, first), min(rows.stop, len(window) - 1)
        if begin < end:
            targets = window[begin + 1 : end + 1].to(piece.device)
            shown = piece[begin - rows.start : end - rows.start]
            total += float(cross_entropy(shown, targets, reduction="sum"))
    return total
