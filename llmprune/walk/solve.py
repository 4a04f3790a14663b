"""Solve one site: choose what goes, and let what stays make up for it.

Letters used in shapes: S sampled tokens, O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmprune.methods.base import PruningMethod, Weights
from llmprune.patterns.base import Pattern
from llmprune.repair.base import LayerRepair, Repaired
from llmprune.tensors.statistics import Statistic


@dataclass(frozen=True)
class Solved:
    """A pruned site, not yet written anywhere."""

    weight: Tensor
    """[O, I], rounded to the dtype of the checkpoint."""

    keep: Tensor = field(repr=False)
    """What survives: bool [O, I], or [I] where whole inputs go."""

    bias: Tensor | None = None
    """To be added to the layer's bias [O]."""

    notes: dict[str, float] = field(default_factory=dict)
    """What method and repair have to report."""


def solve(
    weights: Weights,
    statistic: Statistic,
    method: PruningMethod,
    repair: LayerRepair,
    pattern: Pattern,
    share: float,
) -> Solved:
    """Prune one site to `share`, from its tensors alone.

    Args:
        weights: what the method sees of the site.
        statistic: of its inputs; holds what method and repair need.
        method: chooses what goes.
        repair: makes up for whole inputs that go. Where single weights go, the method does that itself.
        pattern: which masks are allowed.
        share: what goes, 0 to 1.
    """
    solution = method.solve(weights, statistic.of(method.needs), pattern, share)
    if solution.keep.ndim == 1:
        repaired = repair.apply(weights.matrix, solution.keep, statistic.of(repair.needs))
    else:
        repaired = Repaired(solution.weight, notes=solution.notes)
    weight = repaired.weight.to(weights.matrix.dtype)
    return Solved(weight, solution.keep, repaired.bias, repaired.notes)


def output_error(x: Tensor, before: Tensor, after: Tensor, bias: Tensor | None) -> float:
    """||x (W - W')^T - b|| / ||x W^T||, the relative error of a layer's outputs.

    Args:
        x: sampled inputs [S, I].
        before: dense weight W [O, I].
        after: pruned weight W' [O, I].
        bias: b [O], added to the layer's own.
    """
    x = x.float()
    matrix = before.to(torch.float32, copy=True)
    output = float((x @ matrix.T).norm())
    lost = x @ matrix.sub_(after).T
    if bias is not None:
        lost -= bias
    return float(lost.norm()) / output if output else 0.0
