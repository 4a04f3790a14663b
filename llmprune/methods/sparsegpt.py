"""SparseGPT (Frantar and Alistarh, 2023, arXiv:2301.00774): prune column by column, and update the columns
to the right to compensate for each loss.

The update is that of the Optimal Brain Surgeon for the layer's squared output error. The inverse of the
Hessian H = X^T X is computed once per layer, as the factor U with U^T U = H^-1.

Letters used in shapes: O outputs, I inputs, B columns of one slab.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from llmprune.methods.base import Method, Solution, Weights
from llmprune.patterns.base import Pattern
from llmprune.tensors.statistics import Gram

COLUMNAR = 0.5  # relative difference of the slabs' losses from which ROSE reorders


@dataclass(frozen=True)
class Sparsegpt(Method[Gram]):
    """The scores are W^2 / diag(U)^2, with the weights as updated by all columns to the left of the group."""

    needs: ClassVar = Gram
    serves: ClassVar = ("weights",)

    damping: Annotated[float, Field(gt=0)] = 0.01
    """Share of H's mean diagonal to add to H; multiplied by ten each time the factorisation fails."""

    block_size: Annotated[int, Field(ge=1)] = 128
    """Columns whose mask is chosen together (rounded down to a multiple of M for N:M patterns)."""

    precision: Literal["float64", "float32"] = "float64"
    """Precision of the factorisation; float32 needs half the memory."""

    order: Literal["natural", "rose"] = "natural"
    """`rose`: first the columns that lose most, so that more are left to compensate (arXiv:2603.05878)."""

    @property
    def by_rows(self) -> bool:
        """Whether it prunes each row by itself; a new order of columns is chosen for all of them."""
        return self.order == "natural"

    def solve(self, weights: Weights, statistic: Gram, pattern: Pattern, sparsity: float) -> Solution:
        """Prune one layer to `sparsity`; the kept weights change."""
        step = self.block_size
        if pattern.group:
            step = max(step // pattern.group, 1) * pattern.group
        if self.order == "rose":
            order = _rose(weights.matrix, statistic, pattern, sparsity, step)
            if order is not None:
                moved = Weights(weights.matrix[:, order], weights.index)
                found = self._pruned(moved, statistic.reordered(order), pattern, sparsity, step)
                back = order.argsort()
                return Solution(found.weight[:, back], found.keep[:, back], found.notes)
        return self._pruned(weights, statistic, pattern, sparsity, step)

    def _pruned(
        self, weights: Weights, statistic: Gram, pattern: Pattern, sparsity: float, step: int
    ) -> Solution:
        """Prune the columns of one layer from left to right, `step` at a time."""
        factor, damping = statistic.inverse_factor(self.damping, getattr(torch, self.precision))
        columns = weights.matrix.float().T.contiguous()  # [I, O]: a column of the weight is contiguous
        columns[statistic.diagonal == 0] = 0  # inputs that were always zero: any weight serves
        kept = torch.empty_like(columns, dtype=torch.bool)
        factor = factor.float()
        for start in range(0, len(columns), step):
            stop = min(start + step, len(columns))
            slab = slice(start, stop)
            slab_sparsity = _slab_sparsity(sparsity, start, stop, len(columns))
            errors = _prune_slab(columns[slab], kept[slab], factor[slab, slab], pattern, slab_sparsity)
            # The update of all later columns at once: a matrix product instead of `step` rank-1 updates.
            columns[stop:] -= factor[slab, stop:].T @ errors
        weight = columns.masked_fill_(~kept, 0).T.to(weights.matrix.dtype).contiguous()
        return Solution(weight, kept.T, {"damping": damping})


def _rose(weight: Tensor, statistic: Gram, pattern: Pattern, sparsity: float, step: int) -> Tensor | None:
    """ROSE's order of columns [I], or None where the slabs lose too much alike for it to matter.

    What a column loses is Wanda's score of the weights that would go. Columns are sorted within their slab,
    and slabs by their sum; the groups of an N:M pattern move as a whole.
    """
    score = (weight.float() * statistic.scale).square()
    inputs, group = score.shape[1], pattern.group or 1
    slabs, losses = [], []
    for start in range(0, inputs, step):
        stop = min(start + step, inputs)
        part = score[:, start:stop]
        keep = pattern.keep(part, _slab_sparsity(sparsity, start, stop, inputs))
        loss = part.masked_fill(keep, 0).sum(0).reshape(-1, group).sum(1)
        groups = torch.arange(start, stop, device=weight.device).reshape(-1, group)
        slabs.append(groups[loss.argsort(descending=True, stable=True)].flatten())
        losses.append(float(loss.sum()))
    if max(losses) - min(losses) <= COLUMNAR * max(losses):
        return None
    return torch.cat([slabs[slab] for slab in sorted(range(len(slabs)), key=lambda slab: -losses[slab])])


def _slab_sparsity(sparsity: float, start: int, stop: int, inputs: int) -> float:
    """Return the sparsity of one slab; in total a row loses exactly round(sparsity * inputs) weights."""
    total = round(sparsity * inputs)
    return (total * stop // inputs - total * start // inputs) / (stop - start)


def _prune_slab(columns: Tensor, kept: Tensor, factor: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """Prune the columns [B, O] of one slab in place, and return their scaled errors [B, O].

    Args:
        columns: the slab's weights, transposed.
        kept: bool [B, O], filled in.
        factor: the slab's square of U [B, B].
        pattern: which masks are allowed.
        sparsity: share of the slab to drop.
    """
    scale = factor.diagonal()
    group = pattern.group or len(columns)
    errors = torch.empty_like(columns)
    for j in range(len(columns)):
        # N:M patterns choose a mask just before each group, with its updated weights; others once per slab.
        if j % group == 0:
            score = (columns[j : j + group] / scale[j : j + group, None]).square()
            kept[j : j + group] = pattern.keep(score.T, sparsity).T
        torch.mul(columns[j], ~kept[j], out=errors[j])
        errors[j] /= scale[j]
        columns[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
    return errors
