"""Solve one site: choose what to remove, and adjust what stays to compensate.

Letters used in shapes: S sampled tokens, O outputs, I inputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmprune import ranks
from llmprune.methods.base import PruningMethod, Weights
from llmprune.patterns.base import Pattern
from llmprune.repair.base import LayerRepair, Repaired
from llmprune.repair.none import Unrepaired
from llmprune.tensors.statistics import Statistic


@dataclass(frozen=True)
class Solved:
    """The result for one site, not yet written anywhere."""

    weight: Tensor
    """[O, I], rounded to the dtype of the checkpoint."""

    keep: Tensor = field(repr=False)
    """What stays: bool [O, I], or [I] where whole inputs are removed."""

    bias: Tensor | None = None
    """[O], to be added to the layer's bias."""

    notes: dict[str, float] = field(default_factory=dict)
    """Figures of the method and the repair for the report."""


def solve(
    weights: Weights,
    statistic: Statistic,
    method: PruningMethod,
    repair: LayerRepair,
    pattern: Pattern,
    share: float,
) -> Solved:
    """Remove `share` of one site, given its tensors alone; several ranks solve some of its rows each.

    Args:
        weights: the tensors of the site.
        statistic: of its inputs; holds what method and repair need.
        method: chooses what to remove.
        repair: compensates for what was removed; where single weights are, the method may have done so.
        pattern: which masks are allowed.
        share: what to remove, 0 to 1.
    """
    rows = len(weights.matrix)
    if 1 < ranks.count() <= rows and method.by_rows and pattern.by_rows and repair.by_rows:
        own = dataclasses.replace(weights, matrix=weights.matrix[ranks.part(rows)])
        with ranks.alone():
            part = solve(own, statistic, method, repair, pattern, share)
        weight, keep = (ranks.whole(one, rows) for one in (part.weight, part.keep))
        return dataclasses.replace(part, weight=weight, keep=keep)
    stored = weights.matrix.dtype
    weights = dataclasses.replace(weights, matrix=statistic.target(weights.matrix))
    solution = method.solve(weights, statistic.of(method.needs), pattern, share)
    if solution.keep.ndim == 2 and isinstance(repair, Unrepaired):
        repaired = Repaired(solution.weight, notes=solution.notes)  # the method itself may have changed it
    else:
        repaired = repair.apply(weights.matrix, solution.keep, statistic.of(repair.needs))
    # Rounded here, so that all that follows (errors, the next layers) sees the weight that is stored.
    weight = repaired.weight.to(stored)
    return Solved(weight, solution.keep, repaired.bias, repaired.notes)


def output_error(x: Tensor, before: Tensor, after: Tensor, bias: Tensor | None) -> float:
    """||x (W - W')^T - b|| / ||x W^T||, the relative error of a layer's outputs.

    Args:
        x: a sample of the inputs [S, I].
        before: dense weight W [O, I].
        after: pruned weight W' [O, I].
        bias: b [O], added to the layer's own.
    """
    x = x.float()
    matrix = before.to(torch.float32, copy=True)  # a copy, since it is subtracted from in place below
    output = float((x @ matrix.T).norm())
    # Subtract the weights, not the outputs: the difference of two nearly equal outputs would lose digits.
    change = x @ matrix.sub_(after).T
    if bias is not None:
        change -= bias
    return float(change.norm()) / output if output else 0.0
