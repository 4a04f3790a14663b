"""What a student learns from: the dense model's predictions, or the text itself.

Letters used in shapes: B windows, T tokens, R predictions, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Lesson(Protocol):
    """The loss of a student."""

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The mean loss in nats of a student's logits [B, T, V] for token ids [B, T]."""


class Teacher:
    """KL(dense || student) at temperature 1, with the dense model in memory (arXiv:1503.02531).

    Args:
        dense: the model.
    """

    def __init__(self, dense: Any) -> None:
        self._dense = dense.requires_grad_(False).eval()

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The mean loss over all tokens, the last one too: what would follow it does not matter here."""
        with torch.no_grad():
            expected = self._dense(input_ids=ids, use_cache=False).logits.float().flatten(0, 1)
        return divergence(expected, logits.float().flatten(0, 1))


class Text:
    """The cross-entropy of the text, as in pre-training."""

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The mean loss of all tokens but the first."""
        return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def divergence(dense: Tensor, student: Tensor) -> Tensor:
    """The mean KL(dense || student) in nats of two models' logits [R, V]."""
    p, q = dense.log_softmax(-1), student.log_softmax(-1)
    return nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
