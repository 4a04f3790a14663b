"""Finish a run: write the report and the files beside the weights, and check that the result loads."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from llmprune import plugins, report
from llmprune.checkpoint import draft as drafts
from llmprune.checkpoint import reload, versions
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.journal import BlockRecord, RunHeader
from llmprune.checkpoint.opened import Opened
from llmprune.errors import JobError, RequestError
from llmprune.model.shapes import Shapes
from llmprune.plugins import Options
from llmprune.progress import say
from llmprune.recipe import Recipe
from llmprune.recipe.text import write_yaml
from llmprune.report import CalibrationRecord, RecipeRecord, Report, StepRecord, Time
from llmprune.run import card, card_picture, memory, settings, tokens
from llmprune.run.asked import Run
from llmprune.run.job import Job
from llmprune.run.mtp_heads import MtpHeads
from llmprune.run.warning import overpruned, starved
from llmprune.text.calibration import as_now
from llmprune.text.windows import Windows
from llmprune.walk.walk import Walk


def fingerprint(todo: Job, windows: Windows | None) -> dict[str, Any]:
    """Everything that the bytes of the result depend on."""
    recipe: dict[str, Any] = {"recipe": todo.recipe.resolved()}
    if todo.kept:  # a text that has changed since chooses others
        recipe["vocabulary"] = hashlib.sha256(json.dumps(todo.kept.rows).encode()).hexdigest()
    return identity(todo.model, recipe, todo.text(windows), hashed=todo.run.out is not None)


def identity(
    model: Opened, asked: Options, text: CalibrationRecord | None, *, hashed: bool = True
) -> dict[str, Any]:
    """Identify a run by its model, its request, its text and its machine."""
    return {
        "model": [model.name, model.facts["revision"]],
        "weights": model.source.hashes if model.source and hashed else None,
        **asked,
        "calibration": text,
        "device": model.resources.name,
        "dtype": model.resources.dtype_name,
        "versions": versions.installed(),
    }


def already_done(name: str, asked: Recipe, run: Run) -> Report | None:
    """Return the report of a complete folder; complete an interrupted final move first.

    Raises:
        RequestError: the folder was finished with another recipe.
    """
    out = Path(str(run.out))
    done = finished(out)
    if done is None:
        return None
    now, then = asked.resolved(), dict(done.recipe)
    then["calibration"] = as_now(done.recipe["calibration"])
    now["calibration"]["length"] = now["calibration"]["length"] or done.recipe["calibration"]["length"]
    now["model"] = name
    if asked.pattern.settles_sparsity:
        now["sparsity"] = then["sparsity"]
    differing = [key for key in now if now[key] != then.get(key)]
    if differing:
        what = "step" if differing[0] == "before" else differing[0]
        named = drafts.as_named(out)
        raise RequestError("resume", f"{named} was finished with another {what}; choose another --out")
    return done


def finished(out: Path) -> Report | None:
    """Return the report of a complete folder; complete an interrupted final move first."""
    drafts.move_up(out)
    done = report.read(out)
    if done is None or drafts.is_unfinished(out):
        return None
    say(f"{out} is finished already")
    return done


def report_of(
    todo: Job,
    windows: Windows | None,
    records: list[BlockRecord],
    shapes: Shapes,
    header: RunHeader,
    spent: Time,
) -> Report:
    """Make the report of a complete walk; sizes after writing are added later."""
    sites = [site for record in records for site in record.sites]
    facts = todo.facts
    return Report(
        model=facts,
        recipe=cast(RecipeRecord, todo.recipe.resolved()),
        about=plugins.about(type(todo.recipe.method)),
        calibration=todo.text(windows),
        sites=sites,
        blocks=settings.mark(todo, shapes).get("blocks"),
        totals=report.totals(sites, facts, facts["parameters"], todo.plan.checkpoint_bytes),
        time=spent,
        memory=memory.peak(todo.model.resources.device),
        versions=versions.installed(),
        fingerprint=header.fingerprint,
        budgets=header.tried or None,
        searched=header.searched or None,
        warnings=[*overpruned(todo, header.budget), *starved(sites)],
        steps=[_step(step) for step in todo.steps] or None,
    )


def _step(earlier: Report) -> StepRecord:
    """What the last report keeps of an earlier step."""
    kept = ("recipe", "calibration", "totals", "time", "recovery", "vocabulary")
    return cast(StepRecord, {name: getattr(earlier, name) for name in kept})


def zeros_of(records: list[BlockRecord]) -> int | None:
    """Zeros in all blocks of a model that was pruned before; None of one that was not."""
    counted = [record.zeros for record in records if record.zeros is not None]
    return sum(counted) if counted else None


def time_of(records: list[BlockRecord], earlier: int, seconds: float) -> Time:
    """Seconds of this process by task; blocks of an interrupted run count their forward pass only."""
    here = records[earlier:]
    solve_s, write_s = sum(record.solve_s for record in here), sum(record.write_s for record in here)
    return {
        "total_s": seconds,
        "calibration_s": seconds - solve_s - write_s,
        "solve_s": solve_s,
        "write_s": write_s,
        "forward_floor_s": sum(record.forward_s for record in records),
    }


def publish(todo: Job, heads: MtpHeads, draft: Draft, walk: Walk, result: Report, tokenizer: Any) -> Report:
    """Complete the folder of a pruned checkpoint, check that it loads, then move it into place.

    Returns:
        The report, complete.

    Raises:
        JobError: the result does not load, or differs from the model in memory.
    """
    start, shapes = time.perf_counter(), heads.shapes
    draft.write_rest(heads.written(shapes.rest(todo.model.store.rest())))
    result.mtp_heads = heads.records if heads.records or heads.gone else None
    result.warnings = [*result.warnings, *heads.warnings]
    result.time["write_s"] += time.perf_counter() - start
    settings.write(todo, draft, tokenizer, shapes, drops_heads=bool(heads.gone))
    draft.write_text("recipe.yaml", write_yaml(todo.recipe.resolved()))
    after = _parameters_after(todo, draft, result, heads)
    zeros = zeros_of(draft.done)
    result.totals = report.totals(result.sites, todo.facts, after, draft.total_size(), zeros)
    logits = walk.logits() if todo.model.fits_whole() else None
    probe, expected = shapes.reloaded(todo.probe(), logits)
    trust = todo.run.trust_remote_code or settings.mark(todo, shapes).get("layout") == "per_layer"
    if todo.kept:
        text = todo.recipe.calibration.source
        result.vocabulary = tokens.record(todo.kept, text, draft.folder, trust=todo.run.trust_remote_code)
    result.time["total_s"] += time.perf_counter() - start
    seal(todo.model, draft, probe, expected, result, trust=trust)
    return result


def seal(
    model: Opened, draft: Draft, probe: Tensor, expected: Tensor | None, result: Report, *, trust: bool
) -> None:
    """Check that the written checkpoint loads, add its card and report, and move everything into place.

    Args:
        model: the one that was pruned or recovered.
        draft: where the result is.
        probe: token ids [1, T] of the result's vocabulary.
        expected: logits [1, T, V] of the probe, or None where only keys and shapes are compared.
        result: the report, which is completed here.
        trust: whether its own code must run to load it.

    Raises:
        JobError: it does not load, or its logits differ.
    """
    start = time.perf_counter()
    say("loading the result in a fresh process")
    where = model.resources
    how = reload.LoadOptions(dtype=where.dtype_name, device=str(where.device), trust_remote_code=trust)
    try:
        checked = reload.check(draft.folder, expected, probe, how)
    except RuntimeError as error:
        raise JobError(
            f"the pruned checkpoint in {draft.folder} does not load as it should: {error}"
        ) from error
    result.reload = {**checked, "line": checked["line"].format(folder=draft.out)}
    result.memory = memory.peak(where.device)
    result.time["total_s"] += time.perf_counter() - start
    draft.write_text(card_picture.FILE, card_picture.drawn(result))
    draft.write_text("README.md", card.make(result, model.source, draft.out, draft.folder))
    draft.write_text("llmprune_report.json", result.to_json())
    draft.publish()


def _parameters_after(todo: Job, draft: Draft, result: Report, heads: MtpHeads) -> int:
    """Count the parameters of the pruned model; heads for multi-token prediction are no part of it."""
    if todo.model.source is None:
        return todo.plan.parameters
    if todo.model.source.packed:  # what is stored is not what a model has
        return todo.plan.parameters - sum(site.dropped for site in result.sites if site.units)
    stored = sum(one.numel for one in todo.model.source.tensors.values())  # tied ones perhaps twice
    return todo.plan.parameters + draft.total_parameters() + heads.removed - stored
