"""SLEB (Song et al., 2024, arXiv:2402.09025): remove the block whose absence costs least, then measure anew.

The cost is the KL divergence to the dense model, where the paper takes the loss on the text.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmprune.allocation.base import Allocation, Problem
from llmprune.allocation.laptop import Laptop
from llmprune.model.block_site import budget_without
from llmprune.walk.demand import Measuring


@dataclass(frozen=True)
class Sleb(Laptop):
    """Takes half a forward pass of the first `tokens` tokens for each block and each removal."""

    def measuring(self, blocks: int, removed: int, tokens: int) -> Measuring:
        """As many trials as there are blocks left, before each removal."""
        once = super().measuring(blocks, removed, tokens)
        passes = sum(1 + (blocks - gone) // 2 for gone in range(removed))
        return Measuring(passes, once.tokens, once.held)

    def allocate(self, problem: Problem) -> Allocation:
        """Remove one block after another."""
        absence = self.absence(problem)
        gone: list[int] = []
        while len(gone) < problem.count:
            costs = absence.cost(set(gone), problem.removable - set(gone))
            gone.append(min(costs, key=lambda block: (costs[block], block)))
        return Allocation(budget_without(problem.anatomy, gone))
