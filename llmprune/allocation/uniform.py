"""The same sparsity everywhere: what the tables of Wanda and SparseGPT use."""

from dataclasses import dataclass
from typing import ClassVar

from llmprune.allocation.base import Allocator, Budget, Problem


@dataclass(frozen=True)
class Uniform(Allocator):
    """Needs no measurement."""

    uneven: ClassVar = False

    def allocate(self, problem: Problem) -> Budget:
        """The target for every site."""
        return {site.name: problem.sparsity for site in problem.anatomy.sites}
