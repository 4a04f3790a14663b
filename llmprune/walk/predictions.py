"""Compare the predictions of models that share a head, given the hidden states that leave their last blocks.

Letters used in shapes: B sequences of one batch, T tokens, D hidden size, R predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

from torch import Tensor

from llmprune import ranks
from llmprune.checkpoint.store import Store
from llmprune.progress import track
from llmprune.tensors import ops
from llmprune.tensors.agreement import divergence
from llmprune.walk.walk import Walk

States = list[Tensor]  # hidden states [B, T, D], one tensor per batch
K = TypeVar("K", bound=Hashable)


def divergences(store: Store, walk: Walk, dense: States, others: Mapping[K, States]) -> dict[K, float]:
    """Mean KL(dense || other) in nats, by the key of the other model.

    The logits of a few rows of all models are held at a time.

    Args:
        store: holds the head.
        walk: the one that the states are from.
        dense: states of the dense model.
        others: states of the other models, of the same shapes.
    """
    rows = max(1, ops.CHUNK // store.anatomy.vocabulary)
    found: list[tuple[int, dict[K, float]]] = []
    parts = {key: _predicting(states, rows) for key, states in others.items()}
    with store.head():
        for number, whole in enumerate(track(_predicting(dense, rows), "comparing predictions")):
            expected = _predicted(walk, whole)
            # Top-1 agreement, which takes longer than all else here, decides nothing.
            here = {key: divergence(expected, _predicted(walk, part[number])) for key, part in parts.items()}
            found.append((len(whole), here))
    found = ranks.gathered(found)
    predictions = sum(count for count, _ in found)
    return {key: sum(here[key] for _, here in found) / predictions for key in others}


def _predicted(walk: Walk, states: Tensor) -> Tensor:
    """Log-probabilities, float32 [R, V], of hidden states [R, D] that left the last block."""
    return walk.logits(states[:, None])[:, 0].float().log_softmax(-1)


def _predicting(batches: States, rows: int) -> list[Tensor]:
    """Hidden states [B, T, D] but those of last tokens, which predict nothing, in parts [R, D]."""
    return [part for states in batches for part in states[:, :-1].flatten(0, 1).split(rows)]
