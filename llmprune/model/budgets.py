"""Share a total out over the sites of a model: by block, or in proportion to a number for each site."""

from __future__ import annotations

from collections.abc import Sequence

from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.model.widths import Allowed, Budget, budget_of, round_counts, unit_sites


def mean_share(anatomy: Anatomy, shares: Sequence[float]) -> float:
    """Return the sparsity of all sites together, given that of every block."""
    removed = sum(float(shares[site.block]) * site.weights for site in anatomy.sites)
    return removed / sum(site.weights for site in anatomy.sites)


def budget_by_block(anatomy: Anatomy, allowed: Allowed, shares: Sequence[float]) -> Budget:
    """Return the budget that gives every site the sparsity of its block, rounded where whole units go."""
    units = unit_sites(anatomy)
    if not units:
        return {site.name: float(shares[site.block]) for site in anatomy.sites}
    wanted = {site.name: (1 - float(shares[site.block])) * site.units for site in units}
    return budget_of(units, round_counts(units, allowed, wanted, mean_share(anatomy, shares)))


def in_proportion(sites: list[Site], kept: dict[str, float], sparsity: float) -> Budget:
    """Return the budget under which sites keep weights in proportion to `kept`, at most all that they have.

    Args:
        sites: the sites.
        kept: weights to keep, up to a common factor, by the site's name.
        sparsity: share of all weights of the sites to remove, 0 to 1.
    """
    left = (1 - sparsity) * sum(site.weights for site in sites)
    dense: set[str] = set()
    # Making a site dense leaves less for the others, so the factor is computed again until none is full.
    while True:
        rest = [site for site in sites if site.name not in dense]
        spare = left - sum(site.weights for site in sites if site.name in dense)
        factor = spare / (sum(kept[site.name] for site in rest) or 1)
        full = {site.name for site in rest if factor * kept[site.name] > site.weights * (1 + 1e-9)}
        if not full:
            break
        dense |= full
    return {
        s.name: 0.0 if s.name in dense else max(0.0, 1 - factor * kept[s.name] / s.weights) for s in sites
    }
