"""Prune one model: settle how much to remove where, then walk the blocks and remove it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmprune import recovering
from llmprune.checkpoint.draft import Draft
from llmprune.errors import RequestError
from llmprune.paths import existing
from llmprune.recipe import Recipe
from llmprune.run import finish, job
from llmprune.run.job import Job, Run
from llmprune.run.report import Report
from llmprune.run.work import Work
from llmprune.tensors.statistics import Nothing
from llmprune.text.windows import batched, size_of
from llmprune.training import policy_training as learning
from llmprune.walk.walk import Walk


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
        size = size_of(tokens)
        asked = asked.model_copy(update={"calibration": asked.calibration.model_copy(update=size)})
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
    with job.within_memory():
        return _carried_out(todo, tokenizer, tokens)


def _carried_out(todo: Job, tokenizer: Any, tokens: Tensor | None) -> Report:
    start = time.perf_counter()
    if todo.source is None and todo.out is not None:
        tokenizer = todo.tokenizer(tokenizer)  # before the caller's model changes
    learning.require_readable(todo.recipe.method)
    windows = todo.windows(tokenizer, tokens)
    fingerprint = finish.fingerprint(todo, windows)
    draft = Draft(todo.out, todo.plan.blocks) if todo.out is not None else None
    begun = draft.begun(fingerprint) if draft else None
    store = todo.store
    batches = batched(windows.tokens, (begun or todo.plan.execution)["batch"]) if windows else []
    problem = todo.problem(store, batches)
    method = learning.ready(problem, draft.folder if draft and begun else None)
    problem = dataclasses.replace(problem, method=method)
    if begun is None:
        budget = todo.recipe.allocation.allocate(problem)
        begun = {"fingerprint": fingerprint, **todo.plan.execution, "budget": budget}
        if draft:
            draft.begin(begun)
    if draft:
        learning.keep(method, draft.folder)
    survey = problem.survey
    needed = batches if todo.recipe.needs is not Nothing and not survey.seen else []
    walk = Walk(store.anatomy, store, needed, todo.probe())
    earlier = len(draft.done) if draft else 0
    work = Work(todo, method, store, begun, draft, survey)
    records = [work.pruned(stage) for stage in walk.stages("pruning")]
    spent = finish.time_of(records, earlier, time.perf_counter() - start)
    result = finish.report_of(todo, windows, records, fingerprint, spent)
    result.learned = learning.about(method)
    if draft:
        finish.publish(todo, draft, store, walk, result, tokenizer)
    if todo.source is None and todo.recipe.parts is not None:
        shapes = todo.shapes(begun["budget"])
        shapes.apply(work.keeps, finish.mark(todo, shapes))
    return result
