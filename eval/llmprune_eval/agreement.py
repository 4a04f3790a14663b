"""How far a pruned model's predictions are from the dense one's: they move before any score does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llmprune.progress import track
from llmprune.tensors import agreement as tensors
from llmprune_eval import logits
from llmprune_eval.windows import Protocol, settled, windows_of


@dataclass(frozen=True)
class Agreement:
    """Means over all predictions on a text."""

    dataset: str
    kl: float
    """KL(dense || pruned), in nats."""

    top1: float
    """Share of predictions whose likeliest token is the same."""

    predictions: int


@torch.no_grad()
def measure(dense: Any, pruned: Any, tokenizer: Any, text: str, protocol: Protocol) -> Agreement:
    """Compare two models that share a tokenizer, on the windows that their perplexity is measured on."""
    total = tensors.Agreement()
    protocol = settled(protocol, tokenizer, dense.config, pruned.config)
    for window in track(windows_of(tokenizer, text, protocol), f"agreement on {text}", protocol.windows):
        ids = window.ids
        both = zip(logits.pieces(dense, ids), logits.pieces(pruned, ids), strict=True)
        for (rows, before), (_, after) in both:
            last = len(ids) - 1 - rows.start  # nothing follows the last token
            total += tensors.agreement(before[:last], after[:last])
    count = total.predictions
    return Agreement(text, total.kl / count, total.same / count, count)
