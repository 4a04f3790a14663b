"""The same sparsity everywhere: what the tables of Wanda and SparseGPT use."""

from dataclasses import dataclass
from typing import ClassVar

from llmprune.allocation.base import Allocation, Allocator, Problem, budget_of
from llmprune.model.widths import nearest


@dataclass(frozen=True)
class Uniform(Allocator):
    """Needs no measurement. Where whole units go, all blocks end with the same sizes."""

    uneven: ClassVar = False
    serves: ClassVar = ("weights", "units", "rows")

    def allocate(self, problem: Problem) -> Allocation:
        """The target for every site; channels make up for the rounding to whole groups of heads."""
        if not problem.units:
            return Allocation({site.name: problem.sparsity for site in problem.anatomy.sites})
        counts: dict[str, int] = {}
        for block in range(len(problem.anatomy.blocks)):
            sites = [site for site in problem.units if site.block == block]
            left = (1 - problem.sparsity) * sum(site.weights for site in sites)
            for site in sites:
                last = site is sites[-1]
                wanted = left / site.cost if last else (1 - problem.sparsity) * site.units
                counts[site.name] = nearest(problem.allowed[site.name], wanted)
                left -= counts[site.name] * site.cost
        return Allocation(budget_of(problem.units, counts))
