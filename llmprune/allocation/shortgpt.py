"""ShortGPT (Men et al., 2024, arXiv:2403.03853): remove the blocks that turn their input least.

The influence of a block is 1 - E[cos(input, output)] over all tokens. That of a part of it, which the paper
does not have, compares the block's output with what it would be without the part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.block_site import budget_without
from llmprune.tensors import ops
from llmprune.walk.stage import Stage


@dataclass(frozen=True)
class Shortgpt(Allocator):
    """Takes one forward pass of the dense model."""

    needs_text: ClassVar = True
    spreads: ClassVar = True
    serves: ClassVar = ("blocks",)

    def allocate(self, problem: Problem) -> Allocation:
        """Remove the blocks of least influence."""
        found = {stage.index: influence(stage) for stage in problem.stages(forward=True)}
        candidates = problem.removable
        order = sorted(candidates, key=lambda block: (found[block], block))
        return Allocation(budget_without(problem.anatomy, order[: problem.count]))


def influence(stage: Stage) -> float:
    """1 - mean cosine between a block's outputs without and with what may go, over all tokens."""
    stage.outputs = stage.run() if stage.outputs is None else stage.outputs
    return 1 - ops.mean_cosine(stage.without_site(stage.hidden), stage.outputs)
