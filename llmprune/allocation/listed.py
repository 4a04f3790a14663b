"""The blocks that the user lists: `pattern: {name: blocks, remove: [20, 21]}`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.block_site import budget_without
from llmprune.patterns.blocks import Blocks


@dataclass(frozen=True)
class Listed(Allocator):
    """Measures nothing."""

    follows_list: ClassVar = True
    serves: ClassVar = ("blocks",)

    def allocate(self, problem: Problem) -> Allocation:
        """Remove what is listed."""
        assert isinstance(problem.pattern, Blocks)
        return Allocation(budget_without(problem.anatomy, problem.pattern.remove or []))
