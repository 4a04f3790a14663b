"""FLAP's budgets (An et al., 2024, arXiv:2312.11983): one threshold for the standardised scores of all units.

The scores of every site are standardised over its inputs, so a site's budget follows from the shape of its
distribution; the score of a group of heads is the mean over its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmprune.allocation.base import Allocation, Allocator, Observed, Problem, budget_of
from llmprune.model.anatomy import Anatomy
from llmprune.model.unit_site import UnitSite
from llmprune.model.widths import Allowed, require_reachable, round_counts, unit_sites
from llmprune.patterns.units import per_input
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class GlobalThreshold(Allocator):
    """Units with the lowest scores go, wherever they are, until their parameters are as many as asked."""

    compares_scores: ClassVar = True
    serves: ClassVar = ("units",)

    per_kind: bool = False
    """Whether attention and feed-forward network each lose the target share, with a threshold each."""

    def require_possible(self, anatomy: Anatomy, allowed: Allowed, sparsity: float) -> None:
        """Each kind must be able to lose the target share where it gets a threshold of its own."""
        for sites in self._apart(unit_sites(anatomy)):
            require_reachable(sites, allowed, sparsity)

    def allocate(self, problem: Problem) -> Allocation:
        """What the threshold leaves each site, in whole steps."""
        scores: dict[str, Tensor] = {}
        observed = Observed()
        for stage in problem.stages(forward=problem.needs is not Nothing):
            for site, statistic in problem.observe(stage, observed):
                score = per_input(problem.method.score(problem.store.weights(site), statistic)).double().cpu()
                scores[site.name] = (score - score.mean()) / score.std().clamp_min(1e-30)
        counts: dict[str, int] = {}
        for sites in self._apart(problem.units):
            by_unit = {site.name: scores[site.name].reshape(site.units, -1).mean(1) for site in sites}
            wanted = _above_threshold(sites, by_unit, problem.sparsity)
            counts |= round_counts(sites, problem.allowed, wanted, problem.sparsity)
        return Allocation(budget_of(problem.units, counts), observed)

    def _apart(self, sites: list[UnitSite]) -> list[list[UnitSite]]:
        """The sites that share a threshold."""
        kinds = [[s for s in sites if s.part == part] for part in ("attention", "ffn")]
        return [kind for kind in kinds if kind] if self.per_kind else [sites]


def _above_threshold(sites: list[UnitSite], scores: dict[str, Tensor], sparsity: float) -> dict[str, float]:
    """How many units of each site are left when the lowest go until `sparsity` of the parameters is gone."""
    score = torch.cat([scores[site.name] for site in sites])
    cost = torch.cat([torch.full((site.units,), site.cost) for site in sites])
    order = score.argsort(stable=True)
    gone = order[cost[order].cumsum(0) <= sparsity * int(cost.sum())]
    stays = torch.ones(len(score), dtype=torch.bool)
    stays[gone] = False
    parts = stays.split([site.units for site in sites])
    return {site.name: float(part.sum()) for site, part in zip(sites, parts, strict=True)}
