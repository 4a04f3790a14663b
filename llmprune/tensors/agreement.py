"""How far the predictions of one model are from those of another: KL divergence and top-1 agreement.

Letters used in shapes: R predictions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Sums over predictions, so that those of several batches can be added."""

    kl: float = 0.0
    """Sum of KL(dense || pruned), in nats."""

    same: int = 0
    """Predictions whose likeliest token is the same."""

    predictions: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.kl + other.kl, self.same + other.same, self.predictions + other.predictions)


def agreement(dense: Tensor, pruned: Tensor) -> Agreement:
    """Compare two models' logits [R, V] for the same tokens.

    Where one model was widened by ids that no token has, both are compared over those of the narrower one.
    """
    width = min(dense.shape[-1], pruned.shape[-1])
    p, q = dense[:, :width].log_softmax(-1), pruned[:, :width].log_softmax(-1).to(dense.device)
    return Agreement(divergence(p, q), int((p.argmax(-1) == q.argmax(-1)).sum()), len(p))


def divergence(dense: Tensor, pruned: Tensor) -> float:
    """KL(dense || pruned) of two models' log-probabilities [R, V], summed over the predictions, in nats."""
    return float((dense.exp() * (dense - pruned)).sum())
