"""Prune one model: settle how much to remove where, then walk the blocks and remove it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmprune import calibration, finish, job
from llmprune.anatomy import Site
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.store import Store
from llmprune.errors import JobError, RequestError
from llmprune.job import Job, Run
from llmprune.methods.base import Weights
from llmprune.paths import existing
from llmprune.recipe import Recipe
from llmprune.report import Report, SiteRecord
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
        todo: Job | Report = job.live_job(model, asked, run)
    elif run.out is None:
        raise RequestError("out", "no folder was named for the pruned checkpoint")
    else:
        todo = begin(str(model), asked, run)
    if isinstance(todo, Report):
        return todo
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
    if begun is None:
        budget = todo.recipe.allocation.allocate(todo.problem(store, batches))
        begun = {"fingerprint": fingerprint, **todo.plan.execution, "budget": budget}
        if draft:
            draft.begin(begun)
    needed = batches if todo.recipe.method.needs is not Nothing else []
    walk = Walk(store.anatomy, store, needed, todo.probe())
    earlier = len(draft.done) if draft else 0
    records = [_pruned(todo, store, stage, begun, draft) for stage in walk.stages("pruning")]
    spent = finish.time_of(records, earlier, time.perf_counter() - start)
    result = finish.report_of(todo, windows, records, fingerprint, spent)
    if draft:
        finish.publish(todo, draft, store, walk, result, tokenizer)
    return result


def _pruned(
    todo: Job, store: Store, stage: Stage, begun: dict[str, Any], draft: Draft | None
) -> dict[str, Any]:
    """Prune one resident block and write it, or take it as an earlier run left it; tell what happened."""
    if draft and stage.index < len(draft.done):
        if todo.recipe.propagation == "dense":
            stage.outputs = stage.run()
        for site in stage.sites:
            store.restore(site, draft.shard(stage.index))
        return draft.done[stage.index]
    sites, solve_s = [], 0.0
    for site, seen in stage.visit(
        todo.recipe.method.needs, todo.recipe.propagation, together=begun["together"]
    ):
        solving = time.perf_counter()
        sites.append(_solved(todo.recipe, store, site, seen, begun["budget"][site.name]).model_dump())
        solve_s += time.perf_counter() - solving
    record = {"sites": sites, "forward_s": stage.forward_s, "solve_s": solve_s, "write_s": 0.0}
    if draft:
        draft.write_block(stage.index, store.tensors(stage.index), record)
    return record


def _solved(recipe: Recipe, store: Store, site: Site, seen: Seen, sparsity: float) -> SiteRecord:
    """Prune one resident site."""
    weight = store.weight(site)
    solution = recipe.method.solve(Weights(weight, site.index), seen.statistic, recipe.pattern, sparsity)
    store.put(site, solution.weight)
    dropped = solution.keep.numel() - int(solution.keep.sum())
    shape = list(weight.shape)
    return SiteRecord(
        name=site.name,
        block=site.block,
        kind=site.kind,
        asked=sparsity,
        reached=dropped / site.weights,
        dropped=dropped,
        zeros=int((solution.weight == 0).sum()),
        weights=site.weights,
        shape_before=shape,
        shape_after=shape,
        error=_error(seen, weight, solution.weight),
        notes=solution.notes,
    )


def _error(seen: Seen, before: Tensor, after: Tensor) -> float | None:
    """||X (W - W')^T|| / ||X W^T|| on a sample of the layer's inputs; None without calibration."""
    if not seen.rows:
        return None
    x = seen.sample.float()
    matrix = before.to(torch.float32, copy=True)
    output = float((x @ matrix.T).norm())
    return float((x @ matrix.sub_(after).T).norm()) / output if output else 0.0
