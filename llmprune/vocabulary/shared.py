"""The tokens that a model whose vocabulary was cut has in common with the dense one.

Letters used in shapes: V rows of one model's vocabulary, S tokens that both have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmprune.errors import RequestError


@dataclass(frozen=True)
class Shared:
    """Ids [S] of the same tokens in both models; None where the vocabulary is whole."""

    ours: Tensor | None = None
    """In the pruned model."""
    theirs: Tensor | None = None
    """In the dense one."""

    @property
    def cut(self) -> bool:
        """Whether the pruned model lacks tokens of the dense one."""
        return self.ours is not None

    def dense_ids(self, ids: Tensor) -> Tensor:
        """What the dense model calls the tokens that the pruned one calls so.

        Raises:
            RequestError: one of them is no token of both.
        """
        if self.ours is None or self.theirs is None:
            return ids
        known = torch.full((int(max(ids.max(), self.ours.max())) + 1,), -1, device=ids.device)
        known[self.ours.to(ids.device)] = self.theirs.to(ids.device)
        found = known[ids]
        if (found < 0).any():
            number = int(ids[found < 0][0])
            raise RequestError(
                "tokens", f"no token of both models has the id {number}; use the tokenizer's ids"
            )
        return found

    def pruned_ids(self, ids: Tensor) -> Tensor | None:
        """What the pruned model calls tokens of the dense one; None where one of them is gone."""
        if self.ours is None or self.theirs is None:
            return ids
        known = torch.full((int(max(ids.max(), self.theirs.max())) + 1,), -1, device=ids.device)
        known[self.theirs.to(ids.device)] = self.ours.to(ids.device)
        found = known[ids]
        return None if (found < 0).any() else found

    def of_pruned(self, logits: Tensor) -> Tensor:
        """The pruned model's logits [..., V] of the common tokens [..., S]."""
        return logits if self.ours is None else logits[..., self.ours.to(logits.device)]

    def of_dense(self, logits: Tensor) -> Tensor:
        """The dense model's logits [..., V] of the common tokens [..., S]."""
        return logits if self.theirs is None else logits[..., self.theirs.to(logits.device)]


def shared(ours: Mapping[str, int], theirs: Mapping[str, int]) -> Shared:
    """What two vocabularies, from token to id, have in common."""
    common = sorted(ours.keys() & theirs.keys(), key=lambda token: ours[token])
    return Shared(
        torch.tensor([ours[token] for token in common]), torch.tensor([theirs[token] for token in common])
    )
