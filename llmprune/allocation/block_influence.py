"""CFSP's budgets (Wang et al., 2025, arXiv:2409.13199): blocks that turn their input further keep more units.

The influence of a block is the mean angle between its input and its output, as a share of pi.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llmprune.allocation.base import Allocation, Allocator, Observed, Problem, budget_of
from llmprune.model.widths import round_counts
from llmprune.walk.stage import Stage


@dataclass(frozen=True)
class BlockInfluence(Allocator):
    """A block keeps a share in proportion to sigmoid(temperature * (influence - mean influence))."""

    needs_text: ClassVar = True
    serves: ClassVar = ("units",)

    temperature: Annotated[float, Field(ge=0)] = 13.1
    """0 treats all blocks alike. The authors' code divides a sum over tokens by 1e4, which is 13.1 times the
    mean for their 128 x 1024 tokens."""

    def allocate(self, problem: Problem) -> Allocation:
        """The block's share of channels, and of groups of heads if these may go, in whole steps."""
        angles: list[float] = []
        observed = Observed()
        for stage in problem.stages(forward=True):
            list(problem.observe(stage, observed))
            angles.append(influence(stage))
        kept = self.shares(torch.tensor(angles, dtype=torch.float64), 1 - problem.sparsity)
        wanted = {site.name: float(kept[site.block]) * site.units for site in problem.units}
        counts = round_counts(problem.units, problem.allowed, wanted, problem.sparsity)
        return Allocation(budget_of(problem.units, counts), observed)

    def shares(self, angles: Tensor, target: float) -> Tensor:
        """The share that every block keeps, with mean `target` and none above 1."""
        kept = target * self.weights(angles)
        if kept.max() > 1:
            kept = target + (kept - target) * (1 - target) / (kept.max() - target)
        return kept

    def weights(self, angles: Tensor) -> Tensor:
        """How much every block matters, with mean 1."""
        weight = torch.sigmoid(self.temperature * (angles - angles.mean()))
        return weight / weight.mean()


def influence(stage: Stage) -> float:
    """The mean over all tokens of the angle between a block's input and output, divided by pi."""
    outputs = stage.outputs if stage.outputs is not None else stage.run()
    total, tokens = 0.0, 0
    for before, after in zip(stage.hidden, outputs, strict=True):
        cosine = torch.cosine_similarity(before.float(), after.float(), dim=-1).clamp(-1, 1)
        total += float(cosine.double().acos().sum())
        tokens += cosine.numel()
    return total / tokens / torch.pi
