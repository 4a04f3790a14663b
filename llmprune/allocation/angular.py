"""Remove the contiguous span whose ends are closest in angle ("The Unreasonable Ineffectiveness of the Deeper
Layers", Gromov et al., 2024, arXiv:2403.17887).

The distance is arccos(cos(h_l, h_(l+n))) / pi, the mean over all tokens; h_l enters block l.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.errors import RequestError
from llmprune.model.block_site import budget_without
from llmprune.tensors import ops
from llmprune.walk.demand import Measuring


@dataclass(frozen=True)
class Angular(Allocator):
    """Takes one forward pass of the dense model; where only parts go, one more for each block of the span."""

    needs_text: ClassVar = True
    spreads: ClassVar = True
    serves: ClassVar = ("blocks",)

    def measuring(self, blocks: int, removed: int, tokens: int) -> Measuring:
        """The states that entered each span, until its end is reached."""
        return Measuring(1, tokens, removed * tokens)

    def allocate(self, problem: Problem) -> Allocation:
        """Remove the span of `count` blocks with the smallest distance.

        Raises:
            RequestError: no span of that length may go.
        """
        span, candidates = problem.count, problem.removable
        inside: dict[int, list[Tensor]] = {}  # states that passed by the blocks of a span, by its first block
        distances: dict[int, float] = {}
        for stage in problem.stages(forward=True):
            stage.outputs = stage.run()
            if stage.index not in candidates:
                inside.clear()
                continue
            inside[stage.index] = stage.hidden
            inside = {start: stage.without_site(states) for start, states in inside.items()}
            start = stage.index + 1 - span
            if start in inside:
                distances[start] = ops.mean_angle(inside.pop(start), stage.outputs)
        if not distances:
            raise RequestError("sparsity", f"no span of {span} blocks may go; ask for less, or use sleb")
        first = min(distances, key=lambda start: (distances[start], start))
        return Allocation(budget_without(problem.anatomy, range(first, first + span)))
