"""Prune one resident block: observe its sites, solve them, write the block, and record what happened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from llmprune import ranks
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.journal import BlockRecord, RunHeader
from llmprune.checkpoint.store import Store
from llmprune.methods.base import PruningMethod
from llmprune.model.shapes import Shapes, StoredBlock
from llmprune.model.site import Site
from llmprune.recipe import Recipe
from llmprune.report import SiteRecord
from llmprune.run.seam import Seams
from llmprune.tensors.statistics import Nothing
from llmprune.walk.dense_stream import DenseStream
from llmprune.walk.observation import Observation, Observed
from llmprune.walk.solutions import Solutions
from llmprune.walk.solve import Solved, output_error, solve
from llmprune.walk.stage import Stage


@dataclass(frozen=True)
class Work:
    """Prunes one block after another."""

    recipe: Recipe
    method: PruningMethod
    """The recipe's method, after learning."""

    store: Store
    header: RunHeader
    shapes: Shapes
    draft: Draft | None
    observed: Observed
    solved: Solutions | None = None
    seams: Seams | None = None
    """Closed after the block before each removed span is settled."""

    dense: DenseStream | None = None
    """Where layers are fitted to the dense model's own outputs."""

    keeps: dict[str, Tensor] = field(default_factory=dict)
    """Masks of the sites of which whole units or blocks go; they are cut when the block is written."""

    def pruned(self, stage: Stage) -> BlockRecord:
        """Prune one resident block and write it, or restore it from an interrupted run."""
        if self.dense is None:
            return self._settled(stage)
        self.dense.enter(stage)
        record = self._settled(stage)
        self.dense.leave()
        return record

    def _settled(self, stage: Stage) -> BlockRecord:
        done = self.draft is not None and stage.index < len(self.draft.done)
        if done and not self.recipe.sites.changes_sizes:
            return self._restored(stage)
        sites, solve_s = [], 0.0
        known = self.solved.get(stage.index) if self.solved else {}
        for site, seen in self._visited(stage, known):
            solving = time.perf_counter()
            sites.append(self._prune(site, seen, known.get(site.name)))
            solve_s += time.perf_counter() - solving
        refits = self.seams.close(stage) if self.seams else []
        forward_s = self.observed.forward_s.get(stage.index, stage.forward_s)
        record = BlockRecord(sites=sites, refits=refits, forward_s=forward_s, solve_s=solve_s)
        if self.draft is None:
            return record
        if done:  # a cut block cannot be read back into its dense shape; pruning it again gives the same
            return self.draft.done[stage.index]
        tensors = self._tensors(stage.index)
        record = record.model_copy(update={"zeros": self._zeros(tensors)})
        return self.draft.write_block(stage.index, tensors, record)

    def _tensors(self, block: int) -> dict[str, Tensor]:
        """What is written of a resident block, by its keys in the checkpoint."""
        if self.shapes.copies:
            stored = self.store.stored(block)
        else:
            stored = self.store.written(self.shapes.cut_tensors(block, self.keeps, self.store.tensors(block)))
        return self.shapes.cut_stored(StoredBlock(block, stored, self.store.owner), self.keeps)

    def _zeros(self, tensors: dict[str, Tensor]) -> int | None:
        """Zeros in the matrices of a block, where an earlier pruning may have left some."""
        if not getattr(self.store.anatomy.model.config, "llmprune", None):
            return None
        return sum(int((tensor == 0).sum()) for tensor in tensors.values() if tensor.ndim > 1)

    def _visited(self, stage: Stage, known: dict[str, Solved]) -> Iterator[tuple[Site, Observation]]:
        """The sites of a block with their statistics, gathered now or by the allocator."""
        if self.observed.seen:
            return ((site, self.observed.seen.pop(site.name)) for site in stage.sites)
        needs = Nothing if all(site.name in known for site in stage.sites) else self.recipe.needs
        dense = self.dense.inputs_of if self.dense else None
        return stage.visit(needs, self.recipe.propagation, together=self.header.together, dense=dense)

    def _restored(self, stage: Stage) -> BlockRecord:
        """Read back the weights of a block that an interrupted run wrote; return its record."""
        assert self.draft is not None
        if self.recipe.propagation == "dense":
            stage.outputs = stage.run()
        self.store.restore(stage.sites, self.draft.shard(stage.index))
        return self.draft.done[stage.index]

    def _prune(self, site: Site, seen: Observation, solved: Solved | None) -> SiteRecord:
        """Prune one resident site."""
        recipe, share = self.recipe, self.header.budget[site.name]
        weights = self.store.weights(site)
        before = weights.matrix
        if solved is None:
            solved = solve(weights, seen.statistic, self.method, recipe.repair, recipe.pattern, share)
        if recipe.sites.changes_sizes:
            self.keeps[site.name] = solved.keep
        site.write(self.store, solved.weight, solved.bias)
        lost = self.shapes.count_removed(site, solved.weight, solved.keep)
        return SiteRecord(
            name=site.name,
            block=site.block,
            kind=site.kind,
            asked=share,
            reached=lost["dropped"] / site.weights,
            weights=site.weights,
            shape_before=list(before.shape),
            error=output_error(seen.sample, before, solved.weight, solved.bias)
            if seen.rows and ranks.first()
            else None,
            notes=solved.notes | seen.notes,
            **lost,
        )
