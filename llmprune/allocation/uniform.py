"""The same sparsity for all sites, as in the tables of Wanda and SparseGPT."""

from dataclasses import dataclass
from typing import ClassVar

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.widths import budget_of, nearest


@dataclass(frozen=True)
class Uniform(Allocator):
    """Needs no measurement. When whole units are removed, all blocks get the same sizes."""

    uneven: ClassVar = False
    serves: ClassVar = ("weights", "units", "experts", "rows")

    def allocate(self, problem: Problem) -> Allocation:
        """Give every site the target; channels compensate for the rounding to whole groups of heads."""
        if not problem.units:
            return Allocation({site.name: problem.sparsity for site in problem.anatomy.sites})
        if all(site.alike for site in problem.units):
            kept = {s.name: (1 - problem.sparsity) * s.units for s in problem.units}
            alike = {name: nearest(problem.allowed[name], units) for name, units in kept.items()}
            return Allocation(budget_of(problem.units, alike))
        counts: dict[str, int] = {}
        for block in range(len(problem.anatomy.blocks)):
            sites = [site for site in problem.units if site.block == block]
            remaining = (1 - problem.sparsity) * sum(site.weights for site in sites)
            for site in sites:
                last = site is sites[-1]  # the channels, the finest units of a block
                wanted = remaining / site.cost if last else (1 - problem.sparsity) * site.units
                counts[site.name] = nearest(problem.allowed[site.name], wanted)
                remaining -= counts[site.name] * site.cost
        return Allocation(budget_of(problem.units, counts))
