"""Erdos-Renyi kernel budgets (Evci et al., 2020, arXiv:1911.11134): small layers keep a larger share.

The density of a linear layer is proportional to (inputs + outputs) / (inputs * outputs).
"""

from dataclasses import dataclass

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.site import Site


@dataclass(frozen=True)
class Erk(Allocator):
    """Layers whose density would exceed 1 stay dense; the others share the remaining budget."""

    def allocate(self, problem: Problem) -> Allocation:
        """Compute the sparsities from the shapes of the sites."""
        sites = problem.anatomy.sites
        kept = (1 - problem.sparsity) * sum(site.weights for site in sites)
        dense: set[str] = set()
        # Making a layer dense leaves less for the others, so the scale is computed again until none is full.
        while True:
            rest = [site for site in sites if site.name not in dense]
            scale = (kept - sum(s.weights for s in sites if s.name in dense)) / sum(map(_raw_kept, rest))
            full = {site.name for site in rest if scale * _raw_kept(site) > site.weights * (1 + 1e-9)}
            if not full:
                break
            dense |= full
        return Allocation(
            {
                s.name: 0.0 if s.name in dense else max(0.0, 1 - scale * _raw_kept(s) / s.weights)
                for s in sites
            }
        )


def _raw_kept(site: Site) -> int:
    """Return the number of weights that a site keeps, before the common scale: density times size."""
    return site.inputs + site.outputs
