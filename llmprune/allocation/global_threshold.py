"""FLAP's budgets (An et al., 2024, arXiv:2312.11983): one threshold for the standardised scores of all units.

The scores of a site are standardised over its inputs, so its budget depends only on the shape of their
distribution, not on their scale. The score of a group of heads is the mean over its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.anatomy import Anatomy
from llmprune.model.unit_site import UnitSite
from llmprune.model.widths import Allowed, budget_of, require_reachable, round_counts, unit_sites
from llmprune.patterns.units import per_input
from llmprune.tensors.statistics import Nothing
from llmprune.walk.observation import Observed


@dataclass(frozen=True)
class GlobalThreshold(Allocator):
    """Remove the units with the lowest scores, wherever they are, until enough parameters are removed."""

    compares_scores: ClassVar = True
    hands_on: ClassVar = True
    spreads: ClassVar = True
    serves: ClassVar = ("units", "experts")

    per_kind: bool = False
    """True to use two thresholds, so that attention and feed-forward each lose the target share."""

    def require_possible(self, anatomy: Anatomy, allowed: Allowed, sparsity: float) -> None:
        """Check each group of sites with a common threshold on its own."""
        for sites in self._groups(unit_sites(anatomy)):
            require_reachable(sites, allowed, sparsity)

    def allocate(self, problem: Problem) -> Allocation:
        """Count the units above the threshold in each site, rounded to allowed unit counts."""
        scores: dict[str, Tensor] = {}
        observed = Observed()
        for stage in problem.stages(forward=problem.needs is not Nothing):
            for site, statistic in problem.observe(stage, observed):
                score = per_input(problem.method.score(problem.store.weights(site), statistic)).double().cpu()
                scores[site.name] = (score - score.mean()) / score.std().clamp_min(1e-30)
        counts: dict[str, int] = {}
        for sites in self._groups(problem.units):
            by_unit = {site.name: scores[site.name].reshape(site.units, -1).mean(1) for site in sites}
            wanted = _above_threshold(sites, by_unit, problem.sparsity)
            counts |= round_counts(sites, problem.allowed, wanted, problem.sparsity)
        return Allocation(budget_of(problem.units, counts), observed)

    def _groups(self, sites: list[UnitSite]) -> list[list[UnitSite]]:
        """Return the groups of sites that share a threshold."""
        kinds = [[s for s in sites if s.part == part] for part in ("attention", "ffn")]
        return [kind for kind in kinds if kind] if self.per_kind else [sites]


def _above_threshold(sites: list[UnitSite], scores: dict[str, Tensor], sparsity: float) -> dict[str, float]:
    """Return how many units each site keeps when the lowest scores make up `sparsity` of the parameters."""
    score = torch.cat([scores[site.name] for site in sites])
    # A group of heads has far more parameters than a channel, so the threshold is on parameters, not units.
    cost = torch.cat([torch.full((site.units,), site.cost) for site in sites])
    order = score.argsort(stable=True)
    removed = order[cost[order].cumsum(0) <= sparsity * int(cost.sum())]
    keep = torch.ones(len(score), dtype=torch.bool)
    keep[removed] = False
    parts = keep.split([site.units for site in sites])
    return {site.name: float(part.sum()) for site, part in zip(sites, parts, strict=True)}
