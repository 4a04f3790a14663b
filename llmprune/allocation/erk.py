"""Erdos-Renyi kernel budgets (Evci et al., 2020, arXiv:1911.11134): small layers keep a larger share.

The density of a linear layer is proportional to (inputs + outputs) / (inputs * outputs).
"""

from dataclasses import dataclass

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.budgets import in_proportion


@dataclass(frozen=True)
class Erk(Allocator):
    """Layers whose density would exceed 1 stay dense; the others share the remaining budget."""

    def allocate(self, problem: Problem) -> Allocation:
        """Compute the sparsities from the shapes of the sites."""
        sites = problem.anatomy.sites
        # Density times size: what a site keeps, before the common scale.
        kept = {site.name: float(site.inputs + site.outputs) for site in sites}
        return Allocation(in_proportion(sites, kept, problem.sparsity))
