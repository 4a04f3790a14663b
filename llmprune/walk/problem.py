"""What an allocator gets and returns: model, text and target in, the sparsity of every site out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch import Tensor

from llmprune import ranks
from llmprune.checkpoint.store import Store
from llmprune.measured import BudgetTrial, SearchStep
from llmprune.methods.base import Propagation, PruningMethod
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.model.sites.block import removable
from llmprune.model.unit_site import UnitSite
from llmprune.model.widths import Allowed, Budget, unit_sites
from llmprune.patterns.base import Pattern
from llmprune.patterns.blocks import Blocks
from llmprune.patterns.unstructured import Unstructured
from llmprune.repair.base import LayerRepair
from llmprune.repair.none import Unrepaired
from llmprune.tensors.several import joined
from llmprune.tensors.statistics import Nothing, Statistic
from llmprune.walk.observation import Observed
from llmprune.walk.scores import Scores
from llmprune.walk.solutions import Solutions
from llmprune.walk.solve import solve
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk


@dataclass(frozen=True)
class Allocation:
    """The budget, and the measurements and solutions that pruning can reuse."""

    budget: Budget
    observed: Observed = field(default_factory=Observed)
    solved: Solutions | None = None
    """Sites already solved at the sparsities of the budget."""

    tried: list[BudgetTrial] = field(default_factory=list)
    """The budgets that this one was chosen from; empty if there was no choice."""

    searched: list[SearchStep] = field(default_factory=list)
    """How a search came to it."""


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
    propagation: Propagation = "layer"
    together: bool = False
    """How pruning will visit the sites (`Stage.visit`)."""

    allowed: Allowed = field(default_factory=dict)
    """The unit counts that each site may keep; empty for single weights."""

    keeps_statistics: bool = False
    """True if pruning needs no statistics but those measured here, so they are kept for it."""

    scores: Scores | None = None
    """What was measured of the dense model before, instead of batches."""

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
        return (
            joined(self.method.gathers, self.repair.gathers) if self.keeps_statistics else self.method.gathers
        )

    def stages(self, *, forward: bool) -> Iterator[Stage]:
        """Yield every block of the dense model while resident; with calibration batches if `forward`."""
        # A walk without batches only loads the weights.
        batches = ranks.share(self.batches) if forward else []
        yield from Walk(self.store, batches, self.probe, self.scores).stages("measuring the dense model")

    def measured(self, needs: type[Statistic]) -> Iterator[tuple[Site, Statistic]]:
        """Yield every site while resident, with its statistic in the dense model."""
        for stage in self.stages(forward=needs is not Nothing):
            for site, seen in stage.visit(needs, "dense", together=False):
                yield site, seen.statistic.of(needs)

    def observe(self, stage: Stage, observed: Observed) -> Iterator[tuple[Site, Statistic]]:
        """Yield the sites of one block with the method's statistic; add to `observed` what pruning reuses."""
        for site, seen in stage.visit(self.needs, "dense", together=False):
            if self.keeps_statistics:
                observed.seen[site.name] = seen
            yield site, seen.statistic.of(self.method.needs)
        if self.keeps_statistics:
            observed.forward_s[stage.index] = stage.forward_s

    def prune(self, stage: Stage, budget: Budget) -> None:
        """Prune one resident block as the run will, with `target: pruned`; nothing is recorded or written."""
        needs = joined(self.method.gathers, self.repair.gathers)
        for site, seen in stage.visit(needs, self.propagation, together=self.together):
            share, weights = budget[site.name], self.store.weights(site)
            solved = solve(weights, seen.statistic, self.method, self.repair, self.pattern, share)
            site.write(self.store, solved.weight, solved.bias)
