"""ATP's budgets (Huang et al., 2025, arXiv:2502.14770): sparsity rises with depth in a straight line.

Block l of N loses p + b (l - (N - 1) / 2), where p is the target. The authors' code chose b by perplexity on
the test text; `best` chooses on held-out windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.budgets import budget_by_block
from llmprune.model.widths import Allowed


@dataclass(frozen=True)
class Ramp(Allocator):
    """Measures nothing; all sites of a block lose the same share."""

    serves: ClassVar = ("weights", "units")

    rise: float = 0.2
    """What the last block loses minus what the first one loses, b (N - 1); negative to spare late blocks."""

    def require_possible(self, anatomy: Anatomy, allowed: Allowed, sparsity: float) -> None:
        """Check that every block loses from nothing to less than all."""
        super().require_possible(anatomy, allowed, sparsity)
        shares = self.shares(anatomy, sparsity)
        if max(shares) >= 1 or min(shares) < -1e-9:
            sides = [math.copysign(1, self.rise) * offset for offset in _offsets(anatomy)]
            most = min(sparsity / -side if side < 0 else (1 - sparsity) / side for side in sides if side)
            raise RequestError(
                "allocation.rise",
                f"{self.rise:g} was asked, and at a sparsity of {sparsity:g} the first block and the last "
                f"can differ by {most:.4g} at most; ask for less",
            )

    def allocate(self, problem: Problem) -> Allocation:
        """Give each site the share of its block."""
        shares = [max(0.0, share) for share in self.shares(problem.anatomy, problem.sparsity)]
        return Allocation(budget_by_block(problem.anatomy, problem.allowed, shares))

    def shares(self, anatomy: Anatomy, sparsity: float) -> list[float]:
        """Return the share that each block loses."""
        return [sparsity + self.rise * offset for offset in _offsets(anatomy)]


def _offsets(anatomy: Anatomy) -> list[float]:
    """Return the depth of every block from 0 to 1, minus the mean depth of a weight.

    Where blocks are of one size, that is (l - (N - 1) / 2) / (N - 1); else the mean keeps the total exact.
    """
    last = max(1, len(anatomy.blocks) - 1)
    total = sum(site.weights for site in anatomy.sites)
    mean = sum(site.block * site.weights for site in anatomy.sites) / total
    return [(block - mean) / last for block in range(len(anatomy.blocks))]
