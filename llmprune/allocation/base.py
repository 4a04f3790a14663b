"""Base class of allocators, which set the sparsity of every site, given the target for all sites together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from llmprune.methods.base import PruningMethod
from llmprune.model.anatomy import Anatomy
from llmprune.model.widths import Allowed, require_reachable, unit_sites
from llmprune.plugins import OPTIONS
from llmprune.walk.demand import Measuring
from llmprune.walk.problem import Allocation as Allocation
from llmprune.walk.problem import Problem as Problem


@dataclass(frozen=True)
class Allocator:
    """Override `allocate`. The fields of a subclass are its options in a recipe."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS
    uneven: ClassVar[bool] = True
    """True if sites get different sparsities, which an N:M pattern does not allow."""

    compares_scores: ClassVar[bool] = False
    """True if it needs the method's scores of the dense model."""

    needs_text: ClassVar[bool] = False
    """True if it measures activations, even when the method does not need calibration."""

    hands_on: ClassVar[bool] = False
    """True if it keeps statistics for pruning (`Problem.observe`)."""

    resumes: ClassVar[bool] = False
    """True if what it measured is kept in the run's scratch folder, from which it resumes."""

    holds_out: ClassVar[bool] = False
    """True if it chooses on windows that it holds out of the calibration text."""

    follows_list: ClassVar[bool] = False
    """True if it removes what the pattern lists."""

    spreads: ClassVar[bool] = False
    """True if ranks share what it measures; else the first one does it alone."""

    serves: ClassVar[tuple[str, ...]] = ("weights",)
    """What it can allocate (`Sites.shares`)."""

    def settled(self, method: PruningMethod, shares: str, sparsity: float) -> Allocator:
        """Return this allocator with the defaults filled in that depend on the rest of the recipe.

        Args:
            method: of the recipe.
            shares: what it will allocate, one of `serves`.
            sparsity: of all sites together.
        """
        return self

    @property
    def parts(self) -> tuple[Allocator, ...]:
        """The allocators whose budgets it may return; each must fit the recipe."""
        return (self,)

    def require_possible(self, anatomy: Anatomy, allowed: Allowed, sparsity: float) -> None:
        """Refuse a sparsity that no budget can reach, before any weight or text is read.

        Args:
            anatomy: of the dense model.
            allowed: the unit counts that each site may keep; empty for single weights.
            sparsity: of all sites together.

        Raises:
            RequestError: the message states the highest possible sparsity.
        """
        if allowed:
            require_reachable(unit_sites(anatomy), allowed, sparsity)

    def measuring(self, blocks: int, removed: int, tokens: int) -> Measuring:
        """What it takes to measure on the calibration tokens, given the model's blocks and how many go."""
        return Measuring(1, tokens)

    def allocate(self, problem: Problem) -> Allocation:
        """Return the sparsity of every site; all sites together must reach `problem.sparsity`."""
        raise NotImplementedError
