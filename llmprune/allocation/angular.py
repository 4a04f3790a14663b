"""A contiguous span goes whose ends are closest in angle ("The Unreasonable Ineffectiveness of the Deeper
Layers", Gromov et al., 2024, arXiv:2403.17887).

The distance is arccos(cos(h_l, h_(l+n))) / pi, the mean over all tokens; h_l enters block l.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.sites.block import budget_without
from llmprune.tensors import ops


@dataclass(frozen=True)
class Angular(Allocator):
    """Takes one forward pass of the dense model."""

    needs_text: ClassVar = True
    serves: ClassVar = ("blocks",)

    def allocate(self, problem: Problem) -> Allocation:
        """Remove the span of `count` blocks with the smallest distance."""
        span, candidates = problem.count, problem.removable
        recent: dict[int, list[Tensor]] = {}
        distances: dict[int, float] = {}
        for stage in problem.stages(forward=True):
            recent[stage.index] = list(stage.hidden)
            stage.outputs = stage.run()
            start = stage.index + 1 - span
            if start >= 0:
                if candidates.issuperset(range(start, start + span)):
                    distances[start] = ops.mean_angle(recent[start], stage.outputs)
                del recent[start]  # so that the states of one span are held, not of the model
        first = min(distances, key=lambda start: (distances[start], start))
        return Allocation(budget_without(problem.anatomy, range(first, first + span)))
