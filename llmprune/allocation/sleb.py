"""SLEB (Song et al., 2024, arXiv:2402.09025): remove the block whose absence costs least, and measure again.

The cost is the KL divergence to the dense model, where the paper takes the loss on the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.sites.block import budget_without
from llmprune.walk.absence import Absence, few_windows


@dataclass(frozen=True)
class Sleb(Allocator):
    """Takes half a forward pass of the first `tokens` tokens for each block and each removal."""

    needs_text: ClassVar = True
    serves: ClassVar = ("blocks",)

    tokens: Annotated[int, Field(ge=1)] = 4096
    """Calibration tokens that costs are measured on; whole windows."""

    def allocate(self, problem: Problem) -> Allocation:
        """Remove one block after another."""
        absence = Absence(problem.store, few_windows(problem.batches, self.tokens), problem.probe)
        gone: list[int] = []
        while len(gone) < problem.count:
            costs = absence.cost(set(gone), problem.removable - set(gone))
            gone.append(min(costs, key=lambda block: (costs[block], block)))
        return Allocation(budget_without(problem.anatomy, gone))
