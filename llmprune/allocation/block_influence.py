"""CFSP's budgets (Wang et al., 2025, arXiv:2409.13199): blocks that rotate their input more keep more units.

The influence of a block is the mean angle between its input and its output, as a share of pi.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.widths import budget_of, round_counts
from llmprune.walk.observation import Observed


@dataclass(frozen=True)
class BlockInfluence(Allocator):
    """A block keeps a share of units proportional to sigmoid(temperature * (influence - mean influence))."""

    needs_text: ClassVar = True
    hands_on: ClassVar = True
    spreads: ClassVar = True
    serves: ClassVar = ("units",)

    temperature: Annotated[float, Field(ge=0)] = 13.1
    """0 gives all blocks the same share. The authors' code divides a sum over tokens by 1e4, which for their
    128 x 1024 tokens is 13.1 times the mean."""

    def allocate(self, problem: Problem) -> Allocation:
        """Give all sites of a block the same share, rounded to allowed unit counts."""
        angles: list[float] = []
        observed = Observed()
        for stage in problem.stages(forward=True):
            list(problem.observe(stage, observed))  # `angle` reuses the outputs
            angles.append(stage.angle())
        kept = self.shares(torch.tensor(angles, dtype=torch.float64), 1 - problem.sparsity)
        wanted = {site.name: float(kept[site.block]) * site.units for site in problem.units}
        counts = round_counts(problem.units, problem.allowed, wanted, problem.sparsity)
        return Allocation(budget_of(problem.units, counts), observed)

    def shares(self, angles: Tensor, target: float) -> Tensor:
        """Return the share that each block keeps, with mean `target` and none above 1."""
        kept = target * self.weights(angles)
        # Shrink the distances to the mean rather than clip, which would lower the mean.
        if kept.max() > 1:
            kept = target + (kept - target) * (1 - target) / (kept.max() - target)
        return kept

    def weights(self, angles: Tensor) -> Tensor:
        """Return the importance of each block, with mean 1."""
        weight = torch.sigmoid(self.temperature * (angles - angles.mean()))
        return weight / weight.mean()
