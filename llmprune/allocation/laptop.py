"""LAPTOP-Diff (Zhang et al., 2024, arXiv:2404.11098): remove the blocks whose absence costs least by itself.

The costs of several blocks add up, as the paper assumes. The cost is the KL divergence to the dense model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from llmprune import ranks
from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.block_site import budget_without
from llmprune.walk.absence import Absence, few_windows
from llmprune.walk.demand import Measuring


@dataclass(frozen=True)
class Laptop(Allocator):
    """Takes half a forward pass of the first `tokens` tokens for each block."""

    needs_text: ClassVar = True
    spreads: ClassVar = True
    serves: ClassVar = ("blocks",)

    tokens: Annotated[int, Field(ge=1)] = 4096
    """Calibration tokens that costs are measured on; whole windows."""

    def measuring(self, blocks: int, removed: int, tokens: int) -> Measuring:
        """A trial for each block, all of which are in memory at once."""
        few = min(tokens, self.tokens)
        return Measuring(1 + blocks // 2, few, blocks * few)

    def absence(self, problem: Problem) -> Absence:
        """What measures the cost."""
        few = few_windows(problem.batches, self.tokens)
        return Absence(problem.store, ranks.share(few), problem.probe)

    def allocate(self, problem: Problem) -> Allocation:
        """Remove the blocks whose absence costs least."""
        costs = self.absence(problem).cost(set(), problem.removable)
        order = sorted(costs, key=lambda block: (costs[block], block))
        return Allocation(budget_without(problem.anatomy, order[: problem.count]))
