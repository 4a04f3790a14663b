"""What a student learns from: the dense model's predictions, or the text itself.

Letters used in shapes: B windows, T tokens, D hidden size, R predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llmprune.vocabulary.shared import Shared


class Lesson(Protocol):
    """The loss of a student."""

    states: bool
    """Whether training compares hidden states, too."""

    def __call__(self, ids: Tensor, student: Any) -> Tensor:
        """The mean loss in nats of what a student's forward pass returned for token ids [B, T]."""


class Teacher:
    """KL(dense || student) at temperature 1, with the dense model in memory (arXiv:1503.02531).

    Args:
        dense: the model.
        weight: of the distance between hidden states, where the student's come along.
        counterparts: the dense block of every block of the student.
        shared: the tokens that both have.
    """

    def __init__(
        self,
        dense: Any,
        weight: float = 0.0,
        counterparts: Sequence[int] = (),
        shared: Shared = Shared(),  # noqa: B008  # it does not change
    ) -> None:
        self.dense, self._shared = dense.requires_grad_(False).eval(), shared
        self._weight, self._counterparts, self.states = weight, counterparts, weight > 0

    def __call__(self, ids: Tensor, student: Any) -> Tensor:
        """The mean loss over all tokens, the last one too: what would follow it does not matter here."""
        theirs = student.hidden_states
        with torch.no_grad():
            read = self._shared.dense_ids(ids)
            dense = self.dense(input_ids=read, use_cache=False, output_hidden_states=theirs is not None)
        expected, found = self._shared.of_dense(dense.logits), self._shared.of_pruned(student.logits)
        loss = divergence(expected.float().flatten(0, 1), found.float().flatten(0, 1))
        if theirs is None:
            return loss
        # Number 0 are the embeddings, and the last of a model has gone through its final norm.
        pairs = [
            (dense.hidden_states[n + 1], own)
            for n, own in zip(self._counterparts, theirs[1:-1], strict=False)
        ]
        return loss + self._weight * torch.stack([distance(a, b) for a, b in pairs]).mean()


class Text:
    """The cross-entropy of the text, as in pre-training."""

    states = False

    def __call__(self, ids: Tensor, student: Any) -> Tensor:
        """The mean loss of all tokens but the first."""
        logits = student.logits[:, :-1].float().flatten(0, 1)
        return nn.functional.cross_entropy(logits, ids[:, 1:].flatten())


def distance(dense: Tensor, student: Tensor) -> Tensor:
    """|dense - student|^2 / |dense|^2 of hidden states [B, T, D], as LAPTOP-Diff normalises it
    (arXiv:2404.11098), so that no block counts more for the size of its states.
    """
    return (dense.float() - student.float()).square().sum() / dense.float().square().sum()


def divergence(dense: Tensor, student: Tensor) -> Tensor:
    """The mean KL(dense || student) in nats of two models' logits [R, V]."""
    p, q = dense.log_softmax(-1), student.log_softmax(-1)
    return nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
