"""One threshold for the whole model: remove the lowest scores, wherever they are.

All weights compete, so the sparsity of a site follows from the method's scores on the dense model. The
threshold is found by counting, block by block; the scores are never held in memory or sorted together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.model.site import Site
from llmprune.tensors import ops
from llmprune.tensors.statistics import Statistic


@dataclass(frozen=True)
class Global(Allocator):
    """Remove exactly round(sparsity * n) of the n weights; among equal scores, those of earlier sites."""

    compares_scores: ClassVar = True

    def allocate(self, problem: Problem) -> Allocation:
        """Count the scores below the threshold in each site."""
        statistics = {site.name: statistic for site, statistic in problem.measured(problem.method.needs)}
        total = sum(site.weights for site in problem.anatomy.sites)
        drops = round(problem.sparsity * total)
        if drops == 0:
            return Allocation({site.name: 0.0 for site in problem.anatomy.sites})
        # Scores are computed again in every pass of the selection: holding them takes as much as the model.
        threshold = ops.kth_smallest(lambda: (s for _, s in _scores(problem, statistics)), drops)
        below: dict[str, int] = {}
        tied: dict[str, int] = {}
        for site, score in _scores(problem, statistics):
            below[site.name] = int((score < threshold.to(score.device)).sum())
            tied[site.name] = int((score == threshold.to(score.device)).sum())
        # Ties at the threshold are resolved site by site, so that the total is exact.
        remaining = drops - sum(below.values())
        budget = {}
        for site in problem.anatomy.sites:
            here = min(remaining, tied[site.name])
            remaining -= here
            budget[site.name] = (below[site.name] + here) / site.weights
        return Allocation(budget)


def _scores(problem: Problem, statistics: dict[str, Statistic]) -> Iterator[tuple[Site, Tensor]]:
    """Yield the scores of every site, with one block resident at a time."""
    for block in range(len(problem.anatomy.blocks)):
        with problem.store.resident(block):
            for site in problem.anatomy.block_sites(block):
                yield site, problem.method.score(problem.store.weights(site), statistics[site.name]).float()
