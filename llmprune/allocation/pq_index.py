"""SAP's budgets (Diao et al., 2023, arXiv:2302.05601): layers of a higher PQ index keep less.

The index of d entries is I = 1 - d^(1/q - 1/p) |w|_p / |w|_q: 0 where all are equal, near 1 where few are
large. At least the share (1 - I)^(q p / (q - p)) of them must stay (the paper's bound, with eta = 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.errors import RequestError
from llmprune.model.budgets import in_proportion
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class PqIndex(Allocator):
    """The bounds are scaled by one factor, up to whole layers, until all layers together reach the target.

    The paper prunes and trains in turns, and removes a part of what its bound leaves each time.
    """

    spreads: ClassVar = True

    on: Literal["weights", "scores"] = "weights"
    """Compute the index of the weights, or of the method's scores on the dense model."""

    p: Annotated[float, Field(gt=0)] = 0.5
    q: Annotated[float, Field(gt=0)] = 1.0

    def __post_init__(self) -> None:
        if self.p >= self.q:
            raise RequestError(
                "allocation.p", f"{self.p:g} was asked with a q of {self.q:g}; ask for a smaller p"
            )

    @property
    def compares_scores(self) -> bool:  # type: ignore[override]
        """True if the index is that of scores."""
        return self.on == "scores"

    def allocate(self, problem: Problem) -> Allocation:
        """Compute the bound of every site."""
        kept: dict[str, float] = {}
        for site, statistic in problem.measured(problem.method.needs if self.compares_scores else Nothing):
            weights = problem.store.weights(site)
            entries = problem.method.score(weights, statistic) if self.compares_scores else weights.matrix
            kept[site.name] = self.retained(entries)
        return Allocation(in_proportion(problem.anatomy.sites, kept, problem.sparsity))

    def retained(self, entries: Tensor) -> float:
        """How many entries must stay; those that are 0 already do not count."""
        size = entries[entries != 0].double().abs()
        if not len(size):
            return 0.0
        p, q = self.p, self.q
        size /= size.max()  # powers of very small numbers would vanish
        # (1 - I)^(q p / (q - p)) d, where 1 - I is the ratio of two power means.
        ratio = size.pow(p).mean().pow(1 / p) / size.pow(q).mean().pow(1 / q)
        return float(ratio.pow(q * p / (q - p))) * len(size)
