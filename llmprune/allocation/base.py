"""What an allocator is: the sparsity of every site, given a target for all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict
from torch import Tensor

from llmprune.checkpoint.store import Store
from llmprune.methods.base import Method
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites import Site, UnitSite
from llmprune.model.widths import Allowed, Counts, require_reachable, unit_sites
from llmprune.plugins import OPTIONS
from llmprune.tensors.statistics import Nothing, Statistic
from llmprune.walk.stage import Seen, Stage
from llmprune.walk.walk import Walk

Budget = dict[str, float]  # the sparsity of every site, by its name


@dataclass
class Survey:
    """What an allocator measured that pruning would measure again."""

    seen: dict[str, Seen] = field(default_factory=dict)
    forward_s: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """All that an allocator may look at: the model, its calibration batches, the method and the target."""

    anatomy: Anatomy
    store: Store
    batches: list[Tensor]
    probe: Tensor
    method: Method[Any]
    sparsity: float
    needs: type[Statistic] = Nothing
    """What pruning will need to know of every site."""

    allowed: Allowed = field(default_factory=dict)
    """How many units of every site may stay, where whole units go."""

    one_survey: bool = False
    """Whether a survey of the units is to be kept for pruning."""

    survey: Survey = field(default_factory=Survey)

    def stages(self, *, forward: bool) -> Iterator[Stage]:
        """Every block of the dense model, resident, with the calibration batches if they are to be run."""
        batches = self.batches if forward else []
        yield from Walk(self.anatomy, self.store, batches, self.probe).stages("measuring the dense model")

    def measured(self, needs: type[Statistic]) -> Iterator[tuple[Site, Statistic]]:
        """Every site, resident, with its statistic in the dense model."""
        for stage in self.stages(forward=needs is not Nothing):
            for site, seen in stage.visit(needs, "dense", together=False):
                yield site, seen.statistic

    def surveyed(self, stage: Stage) -> Iterator[tuple[UnitSite, Statistic]]:
        """The sites of one block with what the method needs; kept for pruning if that needs no more."""
        for site, seen in stage.visit(self.surveys, "dense", together=False):
            assert isinstance(site, UnitSite)
            if self.one_survey:
                self.survey.seen[site.name] = seen
            yield site, seen.statistic.of(self.method.needs)
        if self.one_survey:
            self.survey.forward_s[stage.index] = stage.forward_s

    @property
    def surveys(self) -> type[Statistic]:
        """What a survey of the units gathers."""
        return self.needs if self.one_survey else self.method.needs

    @property
    def units(self) -> list[UnitSite]:
        """The sites, where whole units go; empty otherwise."""
        return unit_sites(self.anatomy)


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
    """Whether it can share out loose `weights`, whole `units`, or both."""

    def require_possible(self, anatomy: Anatomy, allowed: Allowed, sparsity: float) -> None:
        """Refuse what no budget can reach, before a weight or a text is read.

        Args:
            anatomy: of the dense model.
            allowed: how many units of every site may stay; empty where loose weights go.
            sparsity: of all sites together.

        Raises:
            RequestError: it says how far this can go.
        """
        if allowed:
            require_reachable(unit_sites(anatomy), allowed, sparsity)

    def allocate(self, problem: Problem) -> Budget:
        """The sparsity of every site, such that all sites together reach `problem.sparsity`."""
        raise NotImplementedError


def budget_of(sites: list[UnitSite], counts: Counts) -> Budget:
    """The share of units that goes at every site, given how many stay."""
    return {site.name: 1 - counts[site.name] / site.units for site in sites}
