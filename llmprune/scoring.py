"""Score a model once: keep what a method measures of it, from which it is pruned at any ratio."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from llmprune import ranks
from llmprune.allocation.base import Problem
from llmprune.checkpoint import draft as drafts
from llmprune.checkpoint import versions
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.journal import BlockRecord, RunHeader
from llmprune.checkpoint.lock import held
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.paths import existing
from llmprune.plugins import Options, name_of
from llmprune.progress import say
from llmprune.recipe import Recipe
from llmprune.run import finish, job, learned, plan, scored
from llmprune.run.asked import asked_for
from llmprune.run.job import Job
from llmprune.run.plan import Plan
from llmprune.run.windows import windows
from llmprune.tensors.several import kinds_of
from llmprune.tensors.statistics import Nothing, Statistic
from llmprune.tensors.stored import tensors_of
from llmprune.text.windows import Windows, batched, size_of
from llmprune.walk import scores
from llmprune.walk.demand import Measuring
from llmprune.walk.scores import ScoreRecord
from llmprune.walk.walk import Walk


def score(
    model: str | Path,
    recipe: Recipe | Options | str | Path | None = None,
    *,
    tokens: Tensor | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    **options: object,
) -> ScoreRecord:
    """Measure a dense checkpoint for a method, and keep it in a folder: `prune(..., scores=out)` reads it.

    Args:
        model: a folder, a .gguf file or a Hub id `org/name[@revision]`.
        recipe: as in `prune`; its propagation is `dense`.
        tokens: calibration token ids [N, L], instead of a text.
        on_plan: called with the plan before it is carried out.
        options: fields of Recipe, and of Run, as in `prune`.

    Returns:
        What was measured; the same as `scores.json` in `out`.

    Raises:
        RequestError: the request cannot be carried out; nothing was written.
        JobError: it was sound, and failed; `resume=True` resumes it after the last whole block.
    """
    asked, run = asked_for(recipe, options)
    if tokens is not None:
        text = asked.get("calibration", {})
        asked["calibration"] = {**(text if isinstance(text, dict) else {}), **size_of(tokens)}
    wanted = _wanted(asked)
    if run.folder is None:
        raise RequestError("out", "no folder was named for the scores")
    with held(run.folder):
        if run.resume and (run.folder / scores.FILE).is_file() and not drafts.is_unfinished(run.folder):
            say(f"{run.folder} is finished already")
            return scores.read(run.folder)
        drafts.require_usable(run.folder, resume=run.resume)
        todo = ranks.everywhere(lambda: job.checkpoint_job(str(existing(str(model)) or model), wanted, run))
        todo = dataclasses.replace(todo, plan=_plan(todo))
        if on_plan is not None:
            on_plan(todo.plan)
        todo.plan.require_fit(run.folder)
        with job.within_memory():
            return _carry_out(todo, asked, tokens)


def _wanted(asked: dict[str, object]) -> Recipe:
    """The recipe of a pruning that could follow.

    Raises:
        RequestError: nothing is to be measured, or of more than the dense model.
    """
    if asked.setdefault("propagation", "dense") != "dense":
        raise RequestError(
            "propagation",
            f"{asked['propagation']} was asked, and scores are of the dense model; leave it out",
        )
    wanted = Recipe.parse(asked)
    if wanted.before:
        raise RequestError("steps", "scores are of one model, and a recipe with steps was asked; score once")
    if wanted.needs is Nothing:
        raise RequestError(
            "method", f"{name_of(wanted.method)} looks at no text, so there is nothing to keep; prune at once"
        )
    return wanted


def _plan(todo: Job) -> Plan:
    """What one forward pass takes, and the disk for what it measures."""
    anatomy = todo.model.anatomy
    demand = todo.recipe.demand(len(anatomy.blocks), todo.plan.length)
    once = dataclasses.replace(demand, measuring=Measuring(0, 0), held_tokens=0, holds_all=False)
    made = plan.make(anatomy, once, todo.model.resources, todo.model.bytes, todo.plan.length)
    return dataclasses.replace(made, disk_bytes=_bytes(anatomy, todo.recipe.needs, made))


def _bytes(anatomy: Anatomy, needs: type[Statistic], made: Plan) -> int:
    """At most what scores take; layers that read the same tensor share theirs."""
    sample = getattr(torch, made.dtype).itemsize * min(anatomy.kind.sample_tokens, made.tokens)
    sizes = {site.inputs for site in anatomy.sites}
    sums = {
        size: sum(held.numel() * held.element_size() for held in tensors_of(needs(size, "meta")).values())
        for size in sizes
    }
    return sum(sums[site.inputs] + sample * site.inputs for site in anatomy.sites)


@torch.no_grad()
def _carry_out(todo: Job, asked: dict[str, object], tokens: Tensor | None) -> ScoreRecord:
    """Measure block by block, and write what was measured."""
    start = time.perf_counter()
    model, out = todo.model, todo.run.folder
    assert out is not None and model.source is not None
    text = ranks.from_first(lambda: windows(model, todo.recipe.calibration, todo.plan, tokens=tokens))
    assert text is not None
    todo.run.show(text)
    fingerprint = finish.fingerprint(todo, text)
    draft = Draft(out, todo.plan.blocks - 1, scores.STEM)
    header = draft.resume(fingerprint)
    batch = header.batch if header else todo.plan.batch
    batches = batched(text.tokens, batch)
    ranks.require_enough(len(batches), batch)
    problem = Problem(model.store, batches, todo.probe(), todo.recipe.method, todo.recipe.sparsity)
    method = learned.ready(problem, draft.folder if header else None)
    if header is None:
        draft.begin(RunHeader(fingerprint=fingerprint, batch=batch))
    if ranks.first():
        learned.keep(method, draft.folder)
    for stage in Walk(model.store, ranks.share(batches), problem.probe).stages("measuring the dense model"):
        if stage.index >= len(draft.done):
            tensors = scores.measured(stage, todo.recipe.needs)
            draft.write_block(stage.index, tensors, BlockRecord(forward_s=stage.forward_s))
    record = _record(todo, asked, text, draft, time.perf_counter() - start)
    ranks.from_first(lambda: _finish(draft, record))
    return record


def _record(todo: Job, asked: dict[str, object], text: Windows, draft: Draft, seconds: float) -> ScoreRecord:
    model = todo.model
    assert model.source is not None
    return ScoreRecord(
        model=model.facts,
        files=scored.files(model),
        asked=asked,
        recipe=todo.recipe.resolved(),
        statistics=[kind.__name__ for kind in kinds_of(todo.recipe.needs)],
        calibration=text.record(),
        bytes=sum(draft.shard(block).stat().st_size for block in range(len(draft.done))),
        time={"total_s": seconds},
        device=model.resources.name,
        dtype=model.resources.dtype_name,
        versions=versions.installed(),
    )


def _finish(draft: Draft, record: ScoreRecord) -> None:
    draft.write_text(scores.FILE, record.model_dump_json(by_alias=True, indent=1))
    draft.publish()
