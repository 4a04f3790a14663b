"""The end of a run: the report, the files beside the weights, and the check that the result loads."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from llmprune import plugins
from llmprune.checkpoint import draft as drafts
from llmprune.checkpoint import reload
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.store import Store
from llmprune.errors import JobError, RequestError
from llmprune.model import layout
from llmprune.model.layout import Shapes
from llmprune.progress import say
from llmprune.recipe import Recipe
from llmprune.recipe_text import write_yaml
from llmprune.run import card, report
from llmprune.run.job import Job, Run
from llmprune.run.report import Report, SiteRecord
from llmprune.text.windows import Windows
from llmprune.training import policy_training as learning
from llmprune.walk.walk import Walk

EARLIER = (f"{layout.MODULE}.py", f"{Path(learning.FILE).stem}.json")  # tell of a pruning before this one


def fingerprint(todo: Job, windows: Windows | None) -> dict[str, Any]:
    """All that the bytes of the result depend on."""
    return {
        "model": [todo.model_facts["source"], todo.model_facts["revision"]],
        "weights": todo.source.hashes if todo.source and todo.out else None,
        "recipe": todo.recipe.resolved(),
        "calibration": windows.record() if windows else None,
        "device": todo.resources.name,
        "dtype": todo.plan.dtype,
        "versions": report.versions(),
    }


def already_done(name: str, asked: Recipe, run: Run) -> Report | None:
    """The report of a folder that needs no going on with; a move that was cut off is finished first.

    Raises:
        RequestError: the folder was finished with another recipe.
    """
    out = Path(str(run.out))
    done = finished(out)
    if done is None:
        return None
    now, then = asked.resolved(), done.recipe
    now["calibration"]["length"] = now["calibration"]["length"] or then["calibration"]["length"]
    now["model"] = name
    differing = [key for key in now if now[key] != then[key]]
    if differing:
        raise RequestError("resume", f"{out} was finished with another {differing[0]}; choose another --out")
    return done


def finished(out: Path) -> Report | None:
    """The report of a folder in which nothing is left to do but perhaps a move that was cut off."""
    drafts.move_up(out)
    done = report.read(out)
    if done is None or drafts.is_unfinished(out):
        return None
    say(f"{out} is finished already")
    return done


def report_of(
    todo: Job,
    windows: Windows | None,
    records: list[dict[str, Any]],
    identity: dict[str, Any],
    spent: dict[str, float],
) -> Report:
    """The report of a walk that came to its end; nothing is said yet of what was written."""
    sites = [SiteRecord(**site) for record in records for site in record["sites"]]
    facts = todo.model_facts
    return Report(
        model=facts,
        recipe=todo.recipe.resolved(),
        about=plugins.about(type(todo.recipe.method)),
        calibration=windows.record() if windows else None,
        sites=sites,
        totals=report.totals(sites, facts, facts["parameters"], todo.plan.checkpoint_bytes),
        time=spent,
        memory=report.memory(todo.resources.device),
        versions=report.versions(),
        fingerprint=identity,
    )


def time_of(records: list[dict[str, Any]], earlier: int, seconds: float) -> dict[str, float]:
    """Where this process spent its time; blocks that an earlier one wrote count for the forward alone."""
    solve_s, write_s = (sum(record[key] for record in records[earlier:]) for key in ("solve_s", "write_s"))
    return {
        "total_s": seconds,
        "calibration_s": seconds - solve_s - write_s,
        "solve_s": solve_s,
        "write_s": write_s,
        "forward_floor_s": sum(record["forward_s"] for record in records),
    }


def publish(todo: Job, draft: Draft, store: Store, walk: Walk, result: Report, tokenizer: Any) -> None:
    """Complete the folder of a pruned checkpoint, check that it loads, and only then make it one.

    Raises:
        JobError: the result does not load, or differs from the model in memory.
    """
    start = time.perf_counter()
    draft.write_rest(store.rest())
    result.time["write_s"] += time.perf_counter() - start
    shapes = todo.shapes({site.name: site.asked for site in result.sites}) if todo.recipe.parts else None
    _write_settings(todo, draft, tokenizer, shapes)
    draft.write_text("recipe.yaml", write_yaml(todo.recipe.resolved()))
    after = todo.plan.parameters + draft.total_parameters() - _stored_parameters(todo, draft)
    result.totals = report.totals(result.sites, todo.model_facts, after, draft.total_size())
    expected = walk.logits() if todo.fits_whole() else None
    trust = todo.run.trust_remote_code or mark(todo, shapes).get("layout") == "per_layer"
    result.time["total_s"] += time.perf_counter() - start
    seal(todo, draft, expected, result, trust=trust)


def seal(todo: Job, draft: Draft, expected: Tensor | None, result: Report, *, trust: bool) -> None:
    """Check that the written checkpoint loads, add its card and report, and move everything into place.

    Args:
        todo: the job that wrote it.
        draft: where it is.
        expected: logits [1, T, V] of the probe, or None where only keys and shapes are compared.
        result: the report, which is completed here.
        trust: whether its own code must run to load it.

    Raises:
        JobError: it does not load, or its logits differ.
    """
    start = time.perf_counter()
    say("loading the result in a fresh process")
    how = {"dtype": todo.plan.dtype, "device": str(todo.resources.device), "trust_remote_code": trust}
    try:
        result.reload = reload.check(draft.folder, expected, todo.probe(), how)
        result.reload["line"] = result.reload["line"].format(folder=draft.out)
    except RuntimeError as error:
        raise JobError(
            f"the pruned checkpoint in {draft.folder} does not load as it should: {error}"
        ) from error
    result.memory = report.memory(todo.resources.device)
    result.time["total_s"] += time.perf_counter() - start
    draft.write_text("README.md", card.make(result, todo.source, draft.out))
    draft.write_text("llmprune_report.json", result.to_json())
    draft.publish()


def _stored_parameters(todo: Job, draft: Draft) -> int:
    """How many parameters the dense checkpoint holds; tied ones may be stored twice."""
    if todo.source is None:
        return draft.total_parameters()
    return sum(stored.numbers for stored in todo.source.tensors.values())


def mark(todo: Job, shapes: Shapes | None) -> dict[str, Any]:
    """What the config of a pruned model says of the pruning."""
    said = {
        "version": report.versions()["llmprune"],
        "method": todo.recipe.resolved()["method"]["name"],
        "pattern": str(todo.recipe.pattern),
        "sparsity": todo.recipe.sparsity,
        "recipe": todo.recipe.hash,
    }
    if shapes is not None:
        return said | {"layout": shapes.layout, "biases": shapes.own_biases()}
    kept = {key: layout.earlier(todo.anatomy, key) for key in ("layout", "biases")}
    return said | kept if kept["layout"] else said  # masks leave the blocks their sizes


def _write_settings(todo: Job, draft: Draft, tokenizer: Any, shapes: Shapes | None) -> None:
    """config.json with our key, and the tokenizer and generation config as they were."""
    if todo.source:
        settings = dict(todo.source.settings)
        for file in todo.source.copied_files():
            if file.name not in EARLIER:
                draft.copy(file)
    else:
        model = todo.anatomy.model
        settings = json.loads(model.config.to_json_string())
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(draft.folder)
        todo.tokenizer(tokenizer).save_pretrained(draft.folder)
    settings["llmprune"] = said = mark(todo, shapes)
    if shapes is not None:
        settings = shapes.config(settings)
    if layout.earlier(todo.anatomy, "layout"):
        settings.pop("auto_map", None)
    if said.get("layout") == "per_layer":
        settings["auto_map"] = layout.auto_map(todo.anatomy)
        draft.write_text(f"{layout.MODULE}.py", layout.modelling_file(todo.anatomy))
    draft.write_text("config.json", json.dumps(settings, indent=2))
