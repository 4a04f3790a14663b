"""Unstructured sparsity as rows of kept values under a bit for every column.

Half of the weights cost 1.125 bytes each in 16 bits, as at 2:4, but every row keeps as many as it likes.

Letters used in shapes: N rows, K columns, V values kept in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmprune_kernels.formats.dense import BITS, kept_of


@dataclass(frozen=True)
class Bitmask:
    """A sparse matrix [N, K], K a multiple of 32."""

    values: Tensor
    """[V], row after row, any type."""
    starts: Tensor
    """int64 [N + 1], where each row begins in `values`."""
    mask: Tensor
    """int32 [N, K/32]; bit b of a word is its column b."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the dense matrix."""
        return self.mask.shape[0], 32 * self.mask.shape[1]

    @classmethod
    def from_dense(cls, dense: Tensor, mask: Tensor | None = None) -> Bitmask:
        """What is not zero, or what a bool `mask` [N, K] keeps.

        Raises:
            KernelError: matrix or mask has another shape.
        """
        kept = kept_of(dense, mask, 32)
        starts = torch.zeros(len(dense) + 1, dtype=torch.int64, device=dense.device)
        torch.cumsum(kept.sum(1), 0, out=starts[1:])
        bits = torch.arange(32, device=dense.device)
        words = (kept.reshape(len(dense), -1, 32).long() << bits).sum(-1)
        values = dense.contiguous().view(BITS[dense.itemsize])[kept].view(dense.dtype)
        return cls(values, starts, words.to(torch.int32))

    def kept(self) -> Tensor:
        """bool [N, K], what is stored."""
        bits = torch.arange(32, dtype=torch.int32, device=self.mask.device)
        return (self.mask[..., None] >> bits & 1).bool().reshape(self.shape)

    def to_dense(self) -> Tensor:
        """The matrix [N, K]."""
        integers = self.values.view(BITS[self.values.itemsize])
        dense = integers.new_zeros(self.shape)
        dense[self.kept()] = integers
        return dense.view(self.values.dtype)
