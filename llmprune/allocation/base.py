"""Base class of allocators, which set the sparsity of every site, given the target for all sites together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

from pydantic import ConfigDict
from torch import Tensor

from llmprune.checkpoint.store import Store
from llmprune.methods.base import PruningMethod
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.model.sites.block import removable
from llmprune.model.unit_site import UnitSite
from llmprune.model.widths import Allowed, Budget, require_reachable, unit_sites
from llmprune.patterns.base import Pattern
from llmprune.patterns.blocks import Blocks
from llmprune.patterns.unstructured import Unstructured
from llmprune.plugins import OPTIONS
from llmprune.repair.base import LayerRepair
from llmprune.repair.none import Unrepaired
from llmprune.tensors.statistics import Nothing, Statistic, joined
from llmprune.walk.demand import Measuring
from llmprune.walk.observation import Observed
from llmprune.walk.solutions import Solutions
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk


@dataclass(frozen=True)
class Allocation:
    """The budget, and the measurements and solutions that pruning can reuse."""

    budget: Budget
    observed: Observed = field(default_factory=Observed)
    solved: Solutions | None = None
    """Sites already solved at the sparsities of the budget."""


@dataclass(frozen=True)
class Problem:
    """The input of an allocator: the model, its calibration batches, the method and the target."""

    store: Store
    batches: list[Tensor]
    probe: Tensor
    method: PruningMethod
    sparsity: float
    pattern: Pattern = field(default_factory=Unstructured)
    repair: LayerRepair = field(default_factory=Unrepaired)
    allowed: Allowed = field(default_factory=dict)
    """The unit counts that each site may keep; empty for single weights."""

    keeps_statistics: bool = False
    """True if pruning needs no statistics but those measured here, so they are kept for it."""

    scratch: Path | None = None
    """A folder for data too large for memory; None if the run writes no files."""

    @property
    def anatomy(self) -> Anatomy:
        """The sites and blocks of the dense model."""
        return self.store.anatomy

    @property
    def units(self) -> list[UnitSite]:
        """The sites if whole units are removed; empty for single weights."""
        return unit_sites(self.anatomy)

    @property
    def count(self) -> int:
        """How many blocks go, where whole blocks go."""
        return round(self.sparsity * len(self.anatomy.blocks))

    @property
    def removable(self) -> set[int]:
        """The blocks that may go, where whole blocks go."""
        return removable(self.anatomy, cast(Blocks, self.pattern))

    @property
    def needs(self) -> type[Statistic]:
        """The statistic to gather: the method's, and the repair's too if statistics are kept for pruning."""
        return joined(self.method.needs, self.repair.needs) if self.keeps_statistics else self.method.needs

    def stages(self, *, forward: bool) -> Iterator[Stage]:
        """Yield every block of the dense model while resident; with calibration batches if `forward`."""
        batches = self.batches if forward else []  # a walk without batches only loads the weights
        yield from Walk(self.store, batches, self.probe).stages("measuring the dense model")

    def measured(self, needs: type[Statistic]) -> Iterator[tuple[Site, Statistic]]:
        """Yield every site while resident, with its statistic in the dense model."""
        for stage in self.stages(forward=needs is not Nothing):
            for site, seen in stage.visit(needs, "dense", together=False):
                yield site, seen.statistic

    def observe(self, stage: Stage, observed: Observed) -> Iterator[tuple[Site, Statistic]]:
        """Yield the sites of one block with the method's statistic; add to `observed` what pruning reuses."""
        for site, seen in stage.visit(self.needs, "dense", together=False):
            if self.keeps_statistics:
                observed.seen[site.name] = seen
            yield site, seen.statistic.of(self.method.needs)
        if self.keeps_statistics:
            observed.forward_s[stage.index] = stage.forward_s


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

    follows_list: ClassVar[bool] = False
    """True if it removes what the pattern lists."""

    serves: ClassVar[tuple[str, ...]] = ("weights",)
    """What it can allocate (`Sites.shares`)."""

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
