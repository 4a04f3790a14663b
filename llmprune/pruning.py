"""Prune one model: settle how much to remove where, then walk the blocks and remove it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmprune import calibration, finish, job, recovering
from llmprune.allocation.base import Survey
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.store import Store
from llmprune.errors import JobError, RequestError
from llmprune.job import Job, Run
from llmprune.methods.base import Weights
from llmprune.paths import existing
from llmprune.recipe import Recipe
from llmprune.report import Report, SiteRecord
from llmprune.sites import Site, UnitSite
from llmprune.stage import Seen, Stage
from llmprune.statistics import Nothing
from llmprune.walk import Walk


def prune(
    model: str | Path | PreTrainedModel,
    recipe: Any = None,
    *,
    tokenizer: Any = None,
    tokens: Tensor | None = None,
    **options: Any,
) -> Report:
    """Prune a checkpoint into a new folder, or a model in place.

    Args:
        model: a folder, a .gguf file, a Hub id `org/name[@revision]`, or a model that the caller holds,
            possibly dispatched by accelerate over devices, CPU and disk. Such a model is pruned in place.
        recipe: a Recipe, a mapping, the name of a shipped recipe, or a YAML file.
        tokenizer: for a model in memory whose checkpoint is not at hand.
        tokens: calibration token ids [N, L], instead of a text.
        options: fields of Recipe (`method="wanda"`, `sparsity=0.5`, ...), which win over the recipe's, and of
            Run: `out` (the folder to write), `resume`, `device`, `dtype`, `max_memory`, `trust_remote_code`.

    Returns:
        What happened; the same as `llmprune_report.json` in `out`.

    Raises:
        RequestError: the request cannot be carried out; nothing was written.
        JobError: it was sound, and failed; with `resume=True` it goes on after the last whole block.
    """
    asked, run = job.request(recipe, options)
    if tokens is not None:
        if tokens.ndim != 2 or not tokens.numel():
            raise RequestError("tokens", f"windows [N, L] are needed, and the shape is {list(tokens.shape)}")
        length = {"samples": tokens.shape[0], "length": tokens.shape[1]}
        asked = asked.model_copy(update={"calibration": asked.calibration.model_copy(update=length)})
    if not isinstance(model, str | Path):
        todo: Job | Report = job.live_job(model, asked, recovering.first(asked, run))
    elif run.out is None:
        raise RequestError("out", "no folder was named for the pruned checkpoint")
    else:
        todo = begin(str(model), asked, recovering.first(asked, run))
    report = todo if isinstance(todo, Report) else _done(todo, tokenizer, tokens)
    return recovering.then(asked, run, report, tokens)


def _done(todo: Job, tokenizer: Any, tokens: Tensor | None) -> Report:
    """Do a job, and leave the caller's model in the mode it was in."""
    todo.plan.require_fit(todo.out)
    training = todo.anatomy.model.training
    todo.anatomy.model.eval()  # dropout has no place in a measurement
    try:
        return carry_out(todo, tokenizer, tokens)
    finally:
        todo.anatomy.model.train(training)


def begin(model: str, asked: Recipe, run: Run) -> Job | Report:
    """The job that is left to do for a checkpoint, or the report if an earlier run has done it."""
    model = str(existing(model) or model)
    if run.resume and (done := finish.already_done(model, asked, run)):
        return done
    return job.checkpoint_job(model, asked, run)


@torch.no_grad()
def carry_out(todo: Job, tokenizer: Any, tokens: Tensor | None) -> Report:
    """Do a job whose plan fits.

    Raises:
        JobError: it failed; the sentence says why.
    """
    try:
        return _carried_out(todo, tokenizer, tokens)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise JobError(
            "memory ran out although the plan fitted; lower --max-memory, and go on with --resume"
        ) from error


def _carried_out(todo: Job, tokenizer: Any, tokens: Tensor | None) -> Report:
    start = time.perf_counter()
    if todo.source is None and todo.out is not None:
        tokenizer = todo.tokenizer(tokenizer)  # before the caller's model changes
    windows = todo.windows(tokenizer, tokens)
    fingerprint = finish.fingerprint(todo, windows)
    draft = Draft(todo.out, todo.plan.blocks) if todo.out is not None else None
    begun = draft.begun(fingerprint) if draft else None
    store = todo.open()
    batches = calibration.batched(windows.tokens, (begun or todo.plan.execution)["batch"]) if windows else []
    problem = todo.problem(store, batches)
    if begun is None:
        budget = todo.recipe.allocation.allocate(problem)
        begun = {"fingerprint": fingerprint, **todo.plan.execution, "budget": budget}
        if draft:
            draft.begin(begun)
    survey = problem.survey
    needed = batches if todo.recipe.needs is not Nothing and not survey.seen else []
    walk = Walk(store.anatomy, store, needed, todo.probe())
    earlier = len(draft.done) if draft else 0
    work = _Work(todo, store, begun, draft, survey)
    records = [work.pruned(stage) for stage in walk.stages("pruning")]
    spent = finish.time_of(records, earlier, time.perf_counter() - start)
    result = finish.report_of(todo, windows, records, fingerprint, spent)
    if draft:
        finish.publish(todo, draft, store, walk, result, tokenizer)
    if todo.source is None and todo.recipe.parts is not None:
        shapes = todo.shapes(begun["budget"])
        shapes.apply(work.keeps, finish.mark(todo, shapes))
    return result


@dataclass(frozen=True)
class _Work:
    """What pruning a block takes."""

    todo: Job
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
        recipe, statistic = self.todo.recipe, seen.statistic
        units = None
        share = self.begun["budget"][site.name]
        weight = self.store.weight(site)
        weights = Weights(weight, site.index, getattr(site, "units", 0))
        solution = recipe.method.solve(weights, statistic.of(recipe.method.needs), recipe.pattern, share)
        after, bias, notes = solution.weight, None, solution.notes
        if isinstance(site, UnitSite):
            self.keeps[site.name] = solution.keep
            repaired = recipe.repair.mend(weight, solution.keep, statistic.of(recipe.repair.needs))
            after, bias, notes = repaired.weight.to(weight.dtype), repaired.bias, repaired.notes
            shapes = self.todo.shapes(self.begun["budget"])
            units = [site.units, shapes.counts[site.name]]
            dropped, zeros = (units[0] - units[1]) * site.cost, shapes.zeros(site)
        else:
            dropped = solution.keep.numel() - int(solution.keep.sum())
            zeros = int((after == 0).sum())
        self.store.put(site, after)
        if bias is not None:
            self.store.shift(site, bias)
        shape = list(weight.shape)
        inputs = int(solution.keep.sum()) if isinstance(site, UnitSite) else shape[1]
        return SiteRecord(
            name=site.name,
            block=site.block,
            kind=site.kind,
            asked=share,
            reached=dropped / site.weights,
            dropped=dropped,
            zeros=zeros,
            weights=site.weights,
            units=units,
            shape_before=shape,
            shape_after=[shape[0], inputs],
            error=_error(seen, weight, after, bias),
            notes=notes,
        )


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
