"""One threshold for the whole model: remove the lowest scores, wherever they are.

All weights compete, so the sparsity of a site follows from the method's scores on the dense model. The
threshold is found by counting, block by block; the scores are never held in memory or sorted together. The
minimum for every layer is that of "Global Magnitude Pruning With Minimum Threshold Is All We Need" (Gupta et
al., 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.model.widths import Allowed
from llmprune.tensors import ops
from llmprune.tensors.statistics import Statistic


@dataclass(frozen=True)
class Global(Allocator):
    """Remove exactly round(sparsity * n) of the n weights; among equal scores, those of earlier sites."""

    compares_scores: ClassVar = True
    spreads: ClassVar = True

    minimum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of its weights that every layer keeps at least: those of the highest scores."""

    def require_possible(self, anatomy: Anatomy, allowed: Allowed, sparsity: float) -> None:
        """Check that enough weights may go."""
        total = sum(site.weights for site in anatomy.sites)
        if round(sparsity * total) > total - sum(map(self._safe, anatomy.sites)):
            raise RequestError(
                "allocation.minimum",
                f"{self.minimum:g} of every layer was asked, and a sparsity of {sparsity:g} keeps "
                f"{1 - sparsity:.4g} of all; lower one of them",
            )

    def allocate(self, problem: Problem) -> Allocation:
        """Count the scores below the threshold in each site."""
        statistics = {site.name: statistic for site, statistic in problem.measured(problem.method.needs)}
        total = sum(site.weights for site in problem.anatomy.sites)
        drops = round(problem.sparsity * total)
        if drops == 0:
            return Allocation({site.name: 0.0 for site in problem.anatomy.sites})
        # Scores are computed again in every pass of the selection: holding them takes as much as the model.
        threshold = ops.kth_smallest(lambda: (s for _, s in self._scores(problem, statistics)), drops)
        below: dict[str, int] = {}
        tied: dict[str, int] = {}
        for site, score in self._scores(problem, statistics):
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

    def _safe(self, site: Site) -> int:
        """Return how many weights a site keeps at least."""
        return int(self.minimum * site.weights + 1e-9)  # rounded down, so that 1 - sparsity is possible

    def _scores(self, problem: Problem, statistics: dict[str, Statistic]) -> Iterator[tuple[Site, Tensor]]:
        """Yield the scores of every site, one block resident at a time; infinite where a weight is safe."""
        for block in range(len(problem.anatomy.blocks)):
            with problem.store.resident(block):
                for site in problem.anatomy.block_sites(block):
                    score = problem.method.score(problem.store.weights(site), statistics[site.name]).float()
                    yield site, self._guarded(site, score)

    def _guarded(self, site: Site, score: Tensor) -> Tensor:
        """Return the scores with those of safe weights replaced by infinity."""
        safe = self._safe(site)
        return (
            score.masked_fill(ops.keep_largest_of_all(score, site.weights - safe), math.inf)
            if safe
            else score
        )
