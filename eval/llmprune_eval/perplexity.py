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
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from llmprune.errors import JobError, RequestError
from llmprune.progress import track
from llmprune.text import bos, sources
from llmprune_eval import bootstrap, logits
from llmprune_eval.windows import Protocol, settled, windows_of

LARGEST = 700.0  # nats; beyond, the exponential is no float
BOS = {True: "a BOS in front of each, whose prediction counts", False: "no BOS added"}


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
    bytes: int
    """Of the text that the predicted tokens cover, in UTF-8; `bits_per_byte` is a mean over them."""

    dtype: str
    losses: list[float]
    """Of every window, in nats."""

    interval: list[float] | None = None
    """Of the perplexity, 95 %, by drawing windows; None of fewer than six, or of those that overlap."""

    bits_per_byte_interval: list[float] | None = None
    tokenizers: list[str] | None = None
    """Of all models that were measured on the same characters, where they differ."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with the stamp."""
        return {**asdict(self), "protocol": self.protocol}

    @property
    def protocol(self) -> str:
        """The stamp that is printed beside the figure."""
        most, alike = "", ""
        if self.tokenizers:
            most, alike = "at most ", f", the same characters under {len(self.tokenizers)} tokenizers"
        return (
            f"{self.dataset} ({self.split}), {self.windows} windows of {most}{self.length} tokens{alike}, "
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
    losses, predictions, size = [], 0, 0
    for window in track(windows_of(tokenizer, text, asked), f"perplexity on {text}", asked.windows):
        require_known(model, int(window.ids.max()))
        losses.append(loss_from(model, window.ids, window.first))
        predictions += len(window.predicted)
        size += window.bytes(tokenizer)
    mean = sum(losses) / predictions
    if not mean < LARGEST:
        raise JobError(f"the model's mean loss on {text} is {mean}, so its perplexity is not a number")
    assert asked.length is not None and asked.stride is not None
    bits = sum(losses) / math.log(2) / max(size, 1)
    ends = bootstrap.spread(losses) if asked.apart else None
    times = None if ends is None else [end * len(losses) / sum(losses) for end in ends]
    return Perplexity(
        perplexity=math.exp(mean),
        bits_per_byte=bits,
        dataset=text,
        split=sources.for_evaluation(text).evaluation_split,
        length=asked.length,
        stride=asked.stride,
        bos=bool(bos.tokens(tokenizer, asked.bos, "bos")),
        tokenizer=stamp(tokenizer),
        windows=len(losses),
        predictions=predictions,
        bytes=size,
        dtype=logits.dtype_of(model),
        losses=losses,
        interval=times and [math.exp(min(mean * time, LARGEST)) for time in times],
        bits_per_byte_interval=times and [bits * time for time in times],
        tokenizers=sorted(map(stamp, asked.tokenizers)) or None,
    )


def require_known(model: Any, largest: int) -> None:
    """Refuse a tokenizer whose largest id has no embedding.

    Raises:
        RequestError: it says what was given and what the model knows.
    """
    known = logits.rows_of(model)
    if largest >= known:
        said = f"it gives the id {largest}, and the model knows {known}; put the model's own beside it"
        raise RequestError("tokenizer", said)


def same_tokens(one: str, other: str) -> bool:
    """Whether two stamps are of the same tokens, whatever class holds them."""
    return one.partition(", ")[2] == other.partition(", ")[2]


def stamp(tokenizer: Any) -> str:
    """The same for tokenizers that give the same ids to the same tokens."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(vocabulary.encode()).hexdigest()[:8]
    return f"{type(tokenizer).__name__}, {len(tokenizer)} tokens ({digest})"


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
