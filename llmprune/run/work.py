"""Prune one resident block: measure or recall, choose, repair, write, and tell what happened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmprune.allocation.base import Survey
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.store import Store
from llmprune.methods.base import Method, Solution
from llmprune.model.sites import Site, UnitSite
from llmprune.repair.base import Repaired
from llmprune.report import SiteRecord
from llmprune.run.job import Job
from llmprune.walk.stage import Seen, Stage


@dataclass(frozen=True)
class Work:
    """What pruning a block takes, whichever block it is."""

    todo: Job
    method: Method[Any]
    store: Store
    begun: dict[str, Any]
    draft: Draft | None
    survey: Survey
    keeps: dict[str, Tensor] = field(default_factory=dict)
    """What stays of every unit site, bool [I]."""

    def pruned(self, stage: Stage) -> dict[str, Any]:
        """Prune one resident block and write it, or take it as an earlier run left it; tell what happened."""
        done = self.draft is not None and stage.index < len(self.draft.done)
        if done and self.todo.recipe.parts is None:
            return self._restored(stage)
        sites, solve_s = [], 0.0
        for site, seen in self._visited(stage):
            solving = time.perf_counter()
            sites.append(self._solved(site, seen).model_dump())
            solve_s += time.perf_counter() - solving
        forward_s = self.survey.forward_s.get(stage.index, stage.forward_s)
        record = {"sites": sites, "forward_s": forward_s, "solve_s": solve_s, "write_s": 0.0}
        if self.draft and done:  # cut blocks are not read back: pruning them again gives the same
            return self.draft.done[stage.index]
        if self.draft:
            self.draft.write_block(stage.index, self._tensors(stage), record)
        return record

    def _visited(self, stage: Stage) -> Iterator[tuple[Site, Seen]]:
        """The sites of a block with what calibration saw there, now or in a survey."""
        if self.survey.seen:
            return ((site, self.survey.seen.pop(site.name)) for site in stage.sites)
        recipe = self.todo.recipe
        return stage.visit(recipe.needs, recipe.propagation, together=self.begun["together"])

    def _restored(self, stage: Stage) -> dict[str, Any]:
        """The record of a block that an earlier run wrote, with its weights read back."""
        assert self.draft is not None
        if self.todo.recipe.propagation == "dense":
            stage.outputs = stage.run()
        for site in stage.sites:
            self.store.restore(site, self.draft.shard(stage.index))
        return self.draft.done[stage.index]

    def _tensors(self, stage: Stage) -> dict[str, Tensor]:
        """What is written of a block, cut to its new sizes where whole units went."""
        tensors = self.store.tensors(stage.index)
        for site in stage.sites:
            if isinstance(site, UnitSite):
                shapes = self.todo.shapes(self.begun["budget"])
                shapes.write(site, self.keeps[site.name], tensors, self.store.key)
        return tensors

    def _solved(self, site: Site, seen: Seen) -> SiteRecord:
        """Prune one resident site."""
        recipe, share = self.todo.recipe, self.begun["budget"][site.name]
        weights = self.store.weights(site)
        weight = weights.matrix
        known = seen.statistic.of(recipe.method.needs)
        solution = self.method.solve(weights, known, recipe.pattern, share)
        if isinstance(site, UnitSite):
            self.keeps[site.name] = solution.keep
            mended = recipe.repair.mend(weight, solution.keep, seen.statistic.of(recipe.repair.needs))
            lost = self._units_lost(site)
        else:
            mended = Repaired(solution.weight, notes=solution.notes)
            lost = _weights_lost(solution)
        after = mended.weight.to(weight.dtype)
        self.store.put(site, after)
        if mended.bias is not None:
            self.store.shift(site, mended.bias)
        return SiteRecord(
            name=site.name,
            block=site.block,
            kind=site.kind,
            asked=share,
            reached=lost["dropped"] / site.weights,
            weights=site.weights,
            shape_before=list(weight.shape),
            error=_error(seen, weight, after, mended.bias),
            notes=mended.notes,
            **lost,
        )

    def _units_lost(self, site: UnitSite) -> dict[str, Any]:
        """What the report counts of a site that lost whole units."""
        shapes = self.todo.shapes(self.begun["budget"])
        units = [site.units, shapes.counts[site.name]]
        return {
            "units": units,
            "dropped": (units[0] - units[1]) * site.cost,
            "zeros": shapes.zeros(site),
            "shape_after": [site.outputs, units[1] * site.inputs // site.units],
        }


def _weights_lost(solution: Solution) -> dict[str, Any]:
    """What the report counts of a site that lost loose weights."""
    return {
        "dropped": solution.keep.numel() - int(solution.keep.sum()),
        "zeros": int((solution.weight == 0).sum()),
        "shape_after": list(solution.weight.shape),
    }


def _error(seen: Seen, before: Tensor, after: Tensor, bias: Tensor | None) -> float | None:
    """||X (W - W')^T - b|| / ||X W^T|| on a sample of the layer's inputs; None without calibration."""
    if not seen.rows:
        return None
    x = seen.sample.float()
    matrix = before.to(torch.float32, copy=True)
    output = float((x @ matrix.T).norm())
    lost = x @ matrix.sub_(after).T
    if bias is not None:
        lost -= bias
    return float(lost.norm()) / output if output else 0.0
