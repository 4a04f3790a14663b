"""How far a pruned model's predictions are from the dense one's: they move before any score does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from llmprune.progress import track
from llmprune.tensors import agreement as tensors
from llmprune_eval import comparison, logits
from llmprune_eval.windows import Protocol, settled, windows_of

QUARTERS = 4  # of a window
SEEN = 512  # tokens whose hidden states are compared


@dataclass(frozen=True)
class Agreement:
    """Means over all predictions on a text."""

    dataset: str
    kl: float
    """KL(dense || pruned), in nats."""

    top1: float
    """Share of predictions whose likeliest token is the same."""

    predictions: int

    interval: list[float] | None
    """Of the divergence, 95 %, by drawing windows; None of a single one."""

    by_quarter: list[float]
    """The divergence in each quarter of the windows: whether it grows with what stands before."""


@torch.no_grad()
def measure(dense: Any, pruned: Any, tokenizer: Any, text: str, protocol: Protocol) -> Agreement:
    """Compare two models that share a tokenizer, on the windows that their perplexity is measured on."""
    quarters, each = [tensors.Agreement()] * QUARTERS, []
    protocol = settled(protocol, tokenizer, dense.config, pruned.config)
    for window in track(windows_of(tokenizer, text, protocol), f"agreement on {text}", protocol.windows):
        own = _by_quarter(dense, pruned, window.ids)
        quarters = [total + one for total, one in zip(quarters, own, strict=True)]
        whole = sum(own, start=tensors.Agreement())
        each.append(whole.kl / whole.predictions)
    total = sum(quarters, start=tensors.Agreement())
    count = total.predictions
    parts = [one.kl / one.predictions for one in quarters if one.predictions]
    return Agreement(text, total.kl / count, total.same / count, count, comparison.spread(each), parts)


@torch.no_grad()
def drift(dense: Any, pruned: Any, tokenizer: Any, text: str, protocol: Protocol) -> dict[str, list[float]]:
    """Where the pruned model leaves the dense one: how alike the hidden states behind each block are.

    Args:
        dense: a model in transformers.
        pruned: the same.
        tokenizer: of both.
        text: whose first window is read, at most 512 tokens of it.
        protocol: of the window.

    Returns:
        `blocks`, the dense model's index of every block that stays, and `cosine`, the mean over the tokens.
    """
    protocol = settled(protocol, tokenizer, dense.config, pruned.config)
    ids = next(iter(windows_of(tokenizer, text, protocol))).ids[:SEEN]
    ours, theirs = (_states(model, ids) for model in (pruned, dense))
    blocks = (getattr(pruned.config, "llmprune", None) or {}).get("blocks") or list(range(len(ours)))
    pairs = [(own, theirs[block]) for own, block in zip(ours, blocks, strict=True)]
    return {
        "blocks": blocks,
        "cosine": [float(cosine_similarity(own, other, dim=-1).mean()) for own, other in pairs],
    }


def _states(model: Any, ids: Tensor) -> list[Tensor]:
    """The hidden states behind every block, each [L, D]; the last ones went through the final norm."""
    device = next(model.parameters()).device
    found = model.get_decoder()(ids.to(device)[None], use_cache=False, output_hidden_states=True)
    return [states[0].float().cpu() for states in found.hidden_states[1:]]


def _by_quarter(dense: Any, pruned: Any, ids: Tensor) -> list[tensors.Agreement]:
    """What the models agree on in each quarter of a window [L]."""
    last = len(ids) - 1  # nothing follows the last token
    ends = [last * (number + 1) // QUARTERS for number in range(QUARTERS)]
    found = [tensors.Agreement()] * QUARTERS
    for (rows, before), (_, after) in zip(logits.pieces(dense, ids), logits.pieces(pruned, ids), strict=True):
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            part = slice(max(start - rows.start, 0), max(end - rows.start, 0))
            if len(before[part]):
                found[number] += tensors.agreement(before[part], after[part])
    return found
