"""How surprised a model is by a text: exp of the mean negative log-likelihood per token.

Windows do not overlap, the tail that fills no window is dropped, no special token is added, and each window
of L tokens makes L - 1 predictions. A figure means nothing without these choices, so they travel with it.

Letters used in shapes: N windows, L tokens of one window, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llmprune import calibration
from llmprune.calibration import Calibration
from llmprune.errors import JobError, RequestError
from llmprune.loading import load
from llmprune.paths import existing
from llmprune.progress import track

LARGEST = 700.0  # nats; beyond, the exponential is no float
ROWS = 256  # logits turned into float32 at a time: 150,000 tokens of vocabulary are 150 MB then


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and the protocol that it was measured with."""

    perplexity: float
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
            f"stride {self.stride}, no BOS added, {self.dtype}, tokenizer {self.tokenizer}"
        )


def compare(
    names: dict[str, str], texts: list[str], protocol: dict[str, Any], where: dict[str, Any]
) -> dict[str, Any]:
    """The perplexities of several models on the same texts.

    Args:
        names: of the models, by the role they play.
        texts: as for `measure`.
        protocol: its other arguments.
        where: those of `llmprune.load`.
    """
    results: dict[str, Any] = {}
    for role, name in names.items():
        model, tokenizer = load(name, **where)
        found = [measure(model, tokenizer, text, **protocol).to_dict() for text in texts]
        results[role] = {"name": name, "perplexity": found}
        del model
    return results


def measure(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    length: int | None = None,
    windows: int | None = None,
    column: str = "text",
) -> Perplexity:
    """The perplexity of a model on a text.

    Args:
        model: a causal language model, with its weights where it computes.
        tokenizer: the model's.
        text: as `--calibration`; data sets that llmprune knows give their evaluation half.
        length: tokens per window; the model's context or 2048, whichever is less, unless given.
        windows: only the first so many.
        column: of a table, the column that holds the text.

    Raises:
        RequestError: the text is shorter than one window, or the window longer than the model's context.
    """
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    size = min(2048, context or 2048) if length is None else length
    if size < 2:
        raise RequestError("length", f"{size} was asked, and a window needs 2 tokens to make a prediction")
    if context and size > context:
        raise RequestError("length", f"{size} tokens were asked, and the model's context is {context}")
    asked = Calibration(dataset=text, text_column=column, split=calibration.SPLITS["evaluation"])
    limit = windows and calibration.characters_for(windows, size)
    ids = calibration.tokenize(
        calibration.read_text(text, "evaluation", asked, limit, "perplexity"), tokenizer
    )
    if len(ids) < size:
        raise RequestError("perplexity", f"{text} has {len(ids)} tokens, fewer than one window of {size}")
    cut = ids[: len(ids) // size * size].reshape(-1, size)[:windows]
    losses = [window_loss(model, window) for window in track(list(cut), f"perplexity on {text}")]
    mean = sum(losses) / len(losses)
    if not mean < LARGEST:
        raise JobError(f"the model's mean loss on {text} is {mean}, so its perplexity is not a number")
    return Perplexity(
        perplexity=math.exp(mean),
        dataset=text,
        split=_split(text, asked.split),
        length=size,
        stride=size,
        bos=False,
        tokenizer=type(tokenizer).__name__ + f", {len(tokenizer)} tokens",
        windows=len(losses),
        predictions=len(losses) * (size - 1),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )


@torch.no_grad()
def window_loss(model: Any, window: Tensor) -> float:
    """Mean negative log-likelihood of the tokens of one window [L] but its first, in nats."""
    ids = window.to(next(model.parameters()).device)
    logits = model(ids[None], use_cache=False).logits[0, :-1]  # [L - 1, V]
    targets = ids[1:]
    total = 0.0
    for start in range(0, len(targets), ROWS):
        rows = slice(start, start + ROWS)
        total += float(cross_entropy(logits[rows].float(), targets[rows], reduction="sum"))
    return total / len(targets)


def _split(text: str, on_hub: str) -> str:
    if existing(text):
        return "whole file"
    return {"builtin": "evaluation half", "c4": "validation"}.get(text, on_hub)
