"""How far a pruned model's predictions are from the dense one's: they move before any score does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmprune.progress import track
from llmprune_eval import logits
from llmprune_eval.perplexity import Protocol, settled, windows_of


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
    """Compare two models that share a tokenizer, on the windows that their perplexity is measured on.

    Where one was widened by ids that no token has, both are compared over those of the narrower one.
    """
    kl, same, predictions = 0.0, 0, 0
    protocol = settled(protocol, dense.config, pruned.config)
    for window in track(windows_of(tokenizer, text, protocol), f"agreement on {text}", protocol.windows):
        ids = window.ids
        both = zip(logits.pieces(dense, ids), logits.pieces(pruned, ids), strict=True)
        for (rows, before), (_, after) in both:
            last = len(ids) - 1 - rows.start  # nothing follows the last token
            far, alike = _apart(before[:last], after[:last])
            kl, same, predictions = kl + far, same + alike, predictions + len(before[:last])
    return Agreement(text, kl / predictions, same / predictions, predictions)


def _apart(before: Tensor, after: Tensor) -> tuple[float, int]:
    """Summed divergence, and how many rows [*, V] have their largest entry at the same place."""
    width = min(before.shape[-1], after.shape[-1])
    before, after = before[:, :width], after[:, :width]
    p, q = before.log_softmax(-1), after.log_softmax(-1).to(before.device)
    return float((p.exp() * (p - q)).sum()), int((p.argmax(-1) == q.argmax(-1)).sum())
