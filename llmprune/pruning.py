"""Prune one model: settle how much to remove where, then walk the blocks and remove it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmprune import ranks, recovering
from llmprune.allocation.base import Allocation, Problem
from llmprune.checkpoint.draft import Draft, step_folder
from llmprune.checkpoint.journal import Fingerprint, RunHeader
from llmprune.checkpoint.lock import held
from llmprune.errors import RequestError, of_step
from llmprune.measured import Learned
from llmprune.paths import existing
from llmprune.plugins import Options
from llmprune.recipe import Recipe
from llmprune.repair.span import Span
from llmprune.report import Report
from llmprune.run import finish, job, learned, settings, warning
from llmprune.run.asked import Run, request
from llmprune.run.job import Job
from llmprune.run.mtp_heads import MtpHeads
from llmprune.run.plan import Plan
from llmprune.run.seam import Seams
from llmprune.run.windows import windows
from llmprune.run.work import Work
from llmprune.tensors.statistics import Nothing
from llmprune.text.windows import Windows, batched, size_of
from llmprune.walk.dense_stream import DenseStream
from llmprune.walk.solutions import Solutions
from llmprune.walk.walk import Walk


def prune(
    model: str | Path | PreTrainedModel,
    recipe: Recipe | Options | str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tokens: Tensor | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    **options: object,
) -> Report:
    """Prune a checkpoint into a new folder, or a model in place.

    Args:
        model: a folder, a .gguf file, a Hub id `org/name[@revision]`, or a model that the caller holds,
            possibly dispatched by accelerate over devices, CPU and disk. Such a model is pruned in place.
        recipe: a Recipe, a mapping, the name of a shipped recipe, or a YAML file.
        tokenizer: for a model in memory whose checkpoint is not at hand.
        tokens: calibration token ids [N, L], instead of a text.
        on_plan: called with the plan before it is carried out.
        options: fields of Recipe (`method="wanda"`, `sparsity=0.5`, ...), which win over the recipe's, and of
            Run: `out` (the folder to write), `scores` (a folder that `score` wrote, instead of a text),
            `resume`, `device`, `dtype`, `max_memory`, `trust_remote_code`, `on_text`.

    Returns:
        What happened; the same as `llmprune_report.json` in `out`.

    Raises:
        RequestError: the request cannot be carried out; nothing was written.
        JobError: it was sound, and failed; `resume=True` resumes it after the last whole block.
    """
    asked, run = request(recipe, options)
    if tokens is not None:
        if run.scores is not None:
            raise RequestError("tokens", "scores are of a text that was read before; give one of them")
        if all(step.sites.shares == "rows" for step in asked.every_step):
            raise RequestError("tokens", "the vocabulary is chosen on a text; name one as the calibration")
        size = size_of(tokens)
        asked = asked.model_copy(update={"calibration": asked.calibration.model_copy(update=size)})
    if isinstance(model, str | Path):
        if run.out is None:
            raise RequestError("out", "no folder was named for the pruned checkpoint")
        model = str(existing(str(model)) or model)
    given = _Given(tokenizer, tokens, on_plan)
    with held(run.folder), held(recovering.folder_to_prune(asked, run).folder):
        return _prune(model, asked, run, given)


@dataclass(frozen=True)
class _Given:
    """What the caller hands to every step."""

    tokenizer: PreTrainedTokenizerBase | None
    tokens: Tensor | None
    on_plan: Callable[[Plan], None] | None


def _prune(
    model: str | PreTrainedModel, asked: Recipe, run: Run, given: _Given, steps: Sequence[Report] = ()
) -> Report:
    """Prune as a recipe asks, then recover if it asks for that.

    Args:
        model: a checkpoint or a model in memory: the result of `steps`, where there are any.
        asked: the recipe.
        run: how to run.
        given: what the caller hands to every step.
        steps: reports of what was done to the model before.
    """
    into = recovering.folder_to_prune(asked, run)
    name = steps[0].recipe["model"] if steps else model
    done = (
        ranks.from_first(lambda: finish.already_done(name, asked, into))
        if run.resume and isinstance(name, str)
        else None
    )
    if done is None:
        ranks.everywhere(lambda: job.require_steps(model, asked, into))
        model, steps = _take_steps(model, asked, into, given, list(steps))
        with of_step(len(asked.before) + 1) if asked.before else nullcontext():
            todo = ranks.everywhere(lambda: _job(model, asked, into, given, steps))
        done = _do(todo, given.tokenizer, given.tokens)
    return recovering.recover_pruned(asked, run, done, given.tokens)


def _take_steps(
    model: str | PreTrainedModel, asked: Recipe, run: Run, given: _Given, steps: list[Report]
) -> tuple[str | PreTrainedModel, list[Report]]:
    """Take the steps before a recipe's last one; return the model that they leave, and all reports."""
    for number, step in enumerate(asked.before, 1):
        # A model in memory holds the result of a step itself.
        out = step_folder(run.folder, number) if run.folder and isinstance(model, str) else None
        with of_step(number):
            steps.append(_prune(model, step, dataclasses.replace(run, out=out), given, steps))
        model = str(out) if isinstance(model, str) else model
    return model, steps


def _job(model: str | PreTrainedModel, asked: Recipe, run: Run, given: _Given, steps: list[Report]) -> Job:
    """Open the model, show the plan, and refuse what does not fit."""
    todo = (
        job.checkpoint_job(model, asked, run) if isinstance(model, str) else job.live_job(model, asked, run)
    )
    if steps:
        recipe = todo.recipe.model_copy(update={"model": steps[0].recipe["model"]})
        todo = dataclasses.replace(todo, recipe=recipe, steps=tuple(steps))
    if given.on_plan is not None:
        given.on_plan(todo.plan)
    todo.plan.require_fit(todo.run.folder)
    return todo


@torch.no_grad()
def _do(todo: Job, tokenizer: PreTrainedTokenizerBase | None, tokens: Tensor | None) -> Report:
    """Do a job; restore the training mode of the caller's model."""
    model = todo.model.anatomy.model
    training = model.training
    model.eval()  # dropout has no place in a measurement
    try:
        with job.within_memory():
            return _carry_out(todo, tokenizer, tokens)
    finally:
        model.train(training)


def _carry_out(todo: Job, tokenizer: PreTrainedTokenizerBase | None, tokens: Tensor | None) -> Report:
    """Prune block by block, write the result, and check it.

    Raises:
        JobError: it failed; the sentence says why.
    """
    start = time.perf_counter()
    recipe, model, out = todo.recipe, todo.model, todo.run.folder
    if model.source is None and out is not None:
        tokenizer = model.tokenizer(tokenizer)  # before the caller's model changes
    how = {"out": str(out), "resume": todo.run.resume}
    ranks.require_same(finish.fingerprint(todo, None) | how)
    text = ranks.from_first(lambda: _text(todo, tokenizer, tokens))
    fingerprint = finish.fingerprint(todo, text)
    draft = Draft(out, todo.plan.blocks) if out is not None else None
    header = draft.resume(fingerprint) if draft else None
    batch = header.batch if header else todo.plan.batch
    problem = _problem(todo, batched(text.tokens, batch) if text else [], draft)
    if text:
        ranks.require_enough(len(problem.batches), batch)
    method = learned.ready(problem, _learned_in(todo, draft if header else None))
    problem = dataclasses.replace(problem, method=method)
    if draft and header is None and recipe.allocation.resumes:
        ranks.from_first(lambda: draft.claim(fingerprint))
    found = _allocated(problem, recipe, header)
    if header is None:
        header = ranks.from_first(lambda: _begun(todo, fingerprint, batch, found, draft))
    if draft and ranks.first():
        learned.keep(method, draft.folder)
    shapes = todo.shapes(header.budget)
    heads = MtpHeads(todo, shapes)
    warning.show([*warning.overpruned(todo, header.budget), *heads.warnings])
    seams = _seams(problem, header)
    measures = seams is not None or (recipe.needs is not Nothing and not found.observed.seen)
    batches = ranks.share(problem.batches) if measures else []
    walk = Walk(model.store, batches, problem.probe, todo.scores)
    earlier = len(draft.done) if draft else 0
    dense = DenseStream(model.anatomy) if recipe.target == "dense" else None
    work = Work(
        recipe, method, model.store, header, shapes, draft, found.observed, found.solved, seams, dense
    )
    records = [work.pruned(stage) for stage in walk.stages("pruning", ends=heads.lose_experts)]
    if heads.lose_experts:
        heads.prune(walk, work)
    warning.show(warning.starved(site for record in records for site in record.sites))
    spent = finish.time_of(records, earlier, time.perf_counter() - start)
    result = finish.report_of(todo, text, records, shapes, header, spent)
    result.learned = cast(Learned, method.facts()) or None
    if draft:
        result = ranks.from_first(lambda: finish.publish(todo, heads, draft, walk, result, tokenizer))
    if model.source is None:
        shapes.apply(work.keeps, settings.mark(todo, shapes))
    return result


def _text(todo: Job, tokenizer: PreTrainedTokenizerBase | None, tokens: Tensor | None) -> Windows | None:
    """The calibration windows, shown to the caller."""
    text = windows(todo.model, todo.recipe.calibration, todo.plan, tokenizer, tokens)
    todo.run.show(text)
    return text


def _problem(todo: Job, batches: list[Tensor], draft: Draft | None) -> Problem:
    """What is to be allocated, with the method as it is before it learns."""
    recipe = todo.recipe
    return Problem(
        store=todo.model.store,
        batches=batches,
        probe=todo.probe(),
        method=recipe.method,
        sparsity=recipe.sparsity,
        pattern=recipe.pattern,
        repair=recipe.repair,
        propagation=recipe.propagation,
        together=todo.plan.together,
        allowed=todo.allowed,
        keeps_statistics=recipe.keeps_statistics and todo.scores is None,
        scores=todo.scores,
        scratch=draft.scratch if draft else None,
    )


def _learned_in(todo: Job, begun: Draft | None) -> Path | None:
    """The folder of what the method has learned already: that of the run, or of the scores."""
    if begun is not None:
        return begun.folder
    return todo.scores.folder if todo.scores else None


def _begun(
    todo: Job, fingerprint: Fingerprint, batch: int, found: Allocation, draft: Draft | None
) -> RunHeader:
    """The header of a run that begins, written as the first line of its journal."""
    header = RunHeader(
        fingerprint=fingerprint,
        batch=batch,
        together=todo.plan.together,
        budget=found.budget,
        tried=found.tried,
        searched=found.searched,
    )
    if draft:
        draft.begin(header)
    return header


def _seams(problem: Problem, header: RunHeader) -> Seams | None:
    """What the removed spans put out, if the repair asks for it."""
    if not isinstance(problem.repair, Span):
        return None
    gone = {site.block for site in problem.anatomy.sites if header.budget[site.name] > 0.5}
    return Seams(problem.store, problem.batches, problem.probe, gone, problem.repair)


def _allocated(problem: Problem, recipe: Recipe, header: RunHeader | None) -> Allocation:
    """The budget, with all that was measured or solved for it; a resumed run has it in its journal."""
    if header is None:
        rule = recipe.allocation
        return rule.allocate(problem) if rule.spreads else ranks.from_first(lambda: rule.allocate(problem))
    left = problem.scratch is not None and problem.scratch.is_dir()
    solved = Solutions(problem.scratch) if left and problem.scratch else None
    return Allocation(header.budget, solved=solved)
