"""What an allocator is: the sparsity of every site, given a target for all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict
from torch import Tensor

from llmprune.checkpoint.store import Store
from llmprune.methods.base import Method
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.model.sites.base import Budget
from llmprune.model.unit_site import UnitSite
from llmprune.model.widths import Allowed, Counts, require_reachable, unit_sites
from llmprune.patterns.base import Pattern
from llmprune.patterns.unstructured import Unstructured
from llmprune.plugins import OPTIONS
from llmprune.repair.base import Repair
from llmprune.repair.none import Unrepaired
from llmprune.tensors.statistics import Nothing, Statistic, joined
from llmprune.walk.observation import Observation
from llmprune.walk.solutions import Solutions
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk


@dataclass
class Observed:
    """What an allocator measured of the dense model that pruning would measure again."""

    seen: dict[str, Observation] = field(default_factory=dict)
    """By the site's name; empty if pruning must measure for itself."""

    forward_s: dict[int, float] = field(default_factory=dict)
    """Seconds of one forward pass, by block."""


@dataclass(frozen=True)
class Allocation:
    """What an allocator found: the budget, and what it has measured or solved on the way.

    What is handed on is not done again.
    """

    budget: Budget
    observed: Observed = field(default_factory=Observed)
    solved: Solutions | None = None
    """Sites that are solved already at the budget's shares."""


@dataclass(frozen=True)
class Problem:
    """All that an allocator may look at: the model, its calibration batches, the method and the target."""

    store: Store
    batches: list[Tensor]
    probe: Tensor
    method: Method[Any]
    sparsity: float
    pattern: Pattern = field(default_factory=Unstructured)
    repair: Repair[Any] = field(default_factory=Unrepaired)
    allowed: Allowed = field(default_factory=dict)
    """How many units of every site may stay, where whole units go."""

    hands_on: bool = False
    """Whether what is measured here is all that pruning needs to know."""

    scratch: Path | None = None
    """A folder for what is too large for memory; None where nothing is written."""

    @property
    def anatomy(self) -> Anatomy:
        """Of the dense model."""
        return self.store.anatomy

    @property
    def units(self) -> list[UnitSite]:
        """The sites, where whole units go; empty otherwise."""
        return unit_sites(self.anatomy)

    @property
    def needs(self) -> type[Statistic]:
        """What is gathered of every site: what the method needs, and the repair too if it is handed on."""
        return joined(self.method.needs, self.repair.needs) if self.hands_on else self.method.needs

    def stages(self, *, forward: bool) -> Iterator[Stage]:
        """Every block of the dense model, resident, with the calibration batches if they are to be run."""
        batches = self.batches if forward else []
        yield from Walk(self.store, batches, self.probe).stages("measuring the dense model")

    def measured(self, needs: type[Statistic]) -> Iterator[tuple[Site, Statistic]]:
        """Every site, resident, with its statistic in the dense model."""
        for stage in self.stages(forward=needs is not Nothing):
            for site, seen in stage.visit(needs, "dense", together=False):
                yield site, seen.statistic

    def observe(self, stage: Stage, observed: Observed) -> Iterator[tuple[Site, Statistic]]:
        """The sites of one block with what the method needs; kept in `observed` if pruning needs no more."""
        for site, seen in stage.visit(self.needs, "dense", together=False):
            if self.hands_on:
                observed.seen[site.name] = seen
            yield site, seen.statistic.of(self.method.needs)
        if self.hands_on:
            observed.forward_s[stage.index] = stage.forward_s


@dataclass(frozen=True)
class Allocator:
    """Override `allocate`. The fields of a subclass are its options in a recipe."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS
    uneven: ClassVar[bool] = True
    """Whether sites get different sparsities, which an N:M pattern cannot have."""

    compares_scores: ClassVar[bool] = False
    """Whether it needs the method's scores before anything is pruned."""

    needs_text: ClassVar[bool] = False
    """Whether it measures activations even for a method that does not."""

    serves: ClassVar[tuple[str, ...]] = ("weights",)
    """What it can share out: single `weights`, whole `units`, or both (`Sites.shares`)."""

    def require_possible(self, anatomy: Anatomy, allowed: Allowed, sparsity: float) -> None:
        """Refuse what no budget can reach, before a weight or a text is read.

        Args:
            anatomy: of the dense model.
            allowed: how many units of every site may stay; empty where single weights go.
            sparsity: of all sites together.

        Raises:
            RequestError: it says how far this can go.
        """
        if allowed:
            require_reachable(unit_sites(anatomy), allowed, sparsity)

    def allocate(self, problem: Problem) -> Allocation:
        """The sparsity of every site, such that all sites together reach `problem.sparsity`."""
        raise NotImplementedError


def budget_of(sites: list[UnitSite], counts: Counts) -> Budget:
    """The share of units that goes at every site, given how many stay."""
    return {site.name: 1 - counts[site.name] / site.units for site in sites}
