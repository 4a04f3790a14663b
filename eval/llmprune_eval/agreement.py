"""How far a pruned model's predictions are from the dense one's: they move before any score does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from llmprune.progress import track
from llmprune.tensors import agreement as tensors
from llmprune.vocabulary.shared import Shared
from llmprune_eval import bootstrap, logits
from llmprune_eval.windows import Protocol, settled, windows_of

WHOLE = Shared()  # where no token is gone
QUARTERS = 4  # of a window
SEEN = 512  # tokens of a window whose hidden states are compared
DRIFTING = 8  # windows of them: enough for an interval, and seconds on two cores


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
    """Of the divergence, 95 %, by drawing windows; None of fewer than six, or of those that overlap."""

    top1_interval: list[float] | None
    by_quarter: list[float]
    """The divergence in each quarter of the windows, whether it grows with what stands before; empty for
    windows too short to have four."""

    by_quarter_intervals: list[list[float] | None]
    windows: float = 1.0
    """The share of windows that were compared: of a cut vocabulary, those whose tokens all stayed."""


@torch.no_grad()
def measure(
    both: tuple[Any, Any], tokenizer: Any, text: str, protocol: Protocol, common: Shared = WHOLE
) -> Agreement | None:
    """Compare two models on the windows that the dense one's perplexity alone would be measured on.

    Args:
        both: the dense model, and the pruned one.
        tokenizer: the dense model's.
        text: what they read.
        protocol: how.
        common: the tokens that both have; both models are renormalised over these, and windows with others
            are left out.

    Returns:
        None where every window has others.
    """
    dense, pruned = both
    each: list[list[tensors.Agreement]] = []  # by window, its quarters
    count = 0
    protocol = settled(protocol, tokenizer, dense.config, pruned.config)
    for window in track(windows_of(tokenizer, text, protocol), f"agreement on {text}", protocol.windows):
        count += 1
        own = _by_quarter(dense, pruned, window.ids, common)
        if own is not None:
            each.append(own)
    if not each:
        return None
    whole = [_sum(own) for own in each]
    parts = list(zip(*each, strict=True)) if all(one.predictions for one in each[0]) else []
    kl, top1, *quarters = _intervals(
        [list(map(_kl, whole)), list(map(_top1, whole)), *(list(map(_kl, part)) for part in parts)], protocol
    )
    total = _sum(whole)
    return Agreement(
        dataset=text,
        kl=_kl(total),
        top1=_top1(total),
        predictions=total.predictions,
        interval=kl,
        top1_interval=top1,
        by_quarter=[_kl(_sum(part)) for part in parts],
        by_quarter_intervals=quarters,
        windows=len(each) / count,
    )


@torch.no_grad()
def drift(dense: Any, pruned: Any, tokenizer: Any, text: str, protocol: Protocol) -> dict[str, Any] | None:
    """Where the pruned model leaves the dense one: how alike the hidden states behind each block are.

    Args:
        dense: a model in transformers; it may have lost blocks, too.
        pruned: the same.
        tokenizer: of both.
        text: whose first eight windows are read, at most 512 tokens of each.
        protocol: of the windows.

    Returns:
        `blocks`, the index of every block that both have, `cosine`, the mean over the tokens, `intervals`,
        as those of the divergence, and the `protocol`; None where the models are of different sizes.
    """
    protocol = settled(protocol, tokenizer, dense.config, pruned.config)
    each = []
    for window in islice(windows_of(tokenizer, text, protocol), DRIFTING):
        ours, theirs = (_states(model, window.ids[:SEEN]) for model in (pruned, dense))
        shared = sorted(ours.keys() & theirs.keys())
        marked = any(_kept(model) for model in (dense, pruned))
        if (len(ours) != len(theirs) and not marked) or any(ours[n].shape != theirs[n].shape for n in shared):
            return None
        each.append([float(cosine_similarity(ours[n], theirs[n], dim=-1).mean()) for n in shared])
    by_block = list(zip(*each, strict=True))
    return {
        "blocks": shared,
        "cosine": [sum(one) / len(one) for one in by_block],
        "intervals": _intervals(by_block, protocol),
        "protocol": f"{text}, {len(each)} windows of {min(SEEN, len(window.ids))} tokens",
    }


def _intervals(values: Sequence[Sequence[float]], protocol: Protocol) -> list[list[float] | None]:
    """That of every mean of one value a window; None where windows are few, or share most of their text."""
    return [bootstrap.spread(one) if protocol.apart else None for one in values]


def _sum(found: Iterable[tensors.Agreement]) -> tensors.Agreement:
    return sum(found, start=tensors.Agreement())


def _kl(found: tensors.Agreement) -> float:
    return found.kl / found.predictions


def _top1(found: tensors.Agreement) -> float:
    return found.same / found.predictions


def _kept(model: Any) -> list[int]:
    """The indices of a model's blocks in the one that it was pruned from, if blocks were removed."""
    return list((getattr(model.config, "llmprune", None) or {}).get("blocks", ()))


def _states(model: Any, ids: Tensor) -> dict[int, Tensor]:
    """The hidden states [L, D] behind every block, by its index; the last went through the final norm."""
    device = next(model.parameters()).device
    found = model.get_decoder()(ids.to(device)[None], use_cache=False, output_hidden_states=True)
    states = [one[0].float().cpu() for one in found.hidden_states[1:]]
    return dict(zip(_kept(model) or range(len(states)), states, strict=True))


def _by_quarter(dense: Any, pruned: Any, ids: Tensor, common: Shared) -> list[tensors.Agreement] | None:
    """What the models agree on in each quarter of a window [L]; None where one of its tokens is gone."""
    ours = common.pruned_ids(ids)
    if ours is None:
        return None
    last = len(ids) - 1  # nothing follows the last token
    ends = [last * (number + 1) // QUARTERS for number in range(QUARTERS)]
    found = [tensors.Agreement()] * QUARTERS
    read = zip(logits.pieces(dense, ids), logits.pieces(pruned, ours), strict=True)
    for (rows, whole), (_, cut) in read:
        before, after = common.of_dense(whole), common.of_pruned(cut)
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            part = slice(max(start - rows.start, 0), max(end - rows.start, 0))
            if len(before[part]):
                found[number] += tensors.agreement(before[part], after[part])
    return found
