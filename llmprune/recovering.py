"""Recover a pruned checkpoint: the same sizes and zeros, with weights that are closer to the dense model."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from llmprune import plugins
from llmprune.checkpoint import draft as drafts
from llmprune.checkpoint.draft import Draft
from llmprune.errors import RequestError, sentence
from llmprune.model import layout
from llmprune.recipe import Recipe, part_name
from llmprune.recovery.base import Recovery, Task
from llmprune.run import finish, job, report
from llmprune.run.job import Job, Run
from llmprune.run.report import Report
from llmprune.text.calibration import with_defaults
from llmprune.text.windows import size_of


def recover(
    model: str | Path,
    how: Any = "lora",
    *,
    out: str | Path | None = None,
    baseline: str | None = None,
    calibration: dict[str, Any] | None = None,
    tokens: Tensor | None = None,
    **options: Any,
) -> Report:
    """Recover a pruned checkpoint into a new folder.

    Args:
        model: the folder of a pruned checkpoint.
        how: `lora`, `reconstruct`, or a mapping of that `name` and its options.
        out: the folder to write; the pruned one's name with `-recovered` unless given.
        baseline: the dense model; by default the one that the pruned checkpoint's report names.
        calibration: fields of the recipe's `calibration` that differ from how the checkpoint was pruned.
        tokens: calibration token ids [N, L], instead of a text.
        options: fields of Run: `resume`, `device`, `dtype`, `max_memory`, `trust_remote_code`.

    Returns:
        The pruned checkpoint's report with what the recovery did in `recovery`.

    Raises:
        RequestError: the request cannot be carried out; nothing was written.
        JobError: it was sound, and failed.
    """
    folder = Path(model)
    earlier = report.read(folder) if folder.is_dir() else None
    if earlier is None:
        raise RequestError("model", f"{model} is no folder that llmprune has pruned: it holds no report")
    recovery = part(how)
    run = _run(out if out is not None else beside(folder), options)
    text = with_defaults(calibration or {}, earlier.recipe["calibration"])
    if tokens is not None:
        text |= size_of(tokens)
    recipe = _walk_recipe(recovery, text)
    if run.resume and (done := _already_done(folder, earlier, recovery, recipe, run, baseline)):
        return done
    pruned = job.checkpoint_job(str(folder), recipe, run)
    dense = _dense(baseline or _dense_name(earlier), recipe, run)
    _require_alike(pruned, dense)
    return _carried_out(recovery, pruned, dense, earlier, tokens)


def first(asked: Recipe, run: Run) -> Run:
    """How to prune what a recipe will recover: into a folder of its own, beside the one that was named.

    Raises:
        RequestError: there is no such recovery, or no folder to recover.
    """
    if asked.recovery is None:
        return run
    part(asked.recovery)
    if run.out is None:
        raise RequestError("recovery", "only a checkpoint in a folder can be recovered; name one with out")
    out = Path(run.out)
    drafts.require_usable(out, resume=run.resume)
    return dataclasses.replace(run, out=_named_after(out, "pruned"))


def then(asked: Recipe, run: Run, pruned: Report, tokens: Tensor | None = None) -> Report:
    """The report of what a recipe recovers once it has been pruned."""
    if asked.recovery is None:
        return pruned
    how = dataclasses.asdict(run)
    return recover(Path(str(first(asked, run).out)), asked.recovery, tokens=tokens, **how)


def beside(folder: Path) -> Path:
    """Where a recovered checkpoint goes unless another folder is named."""
    return _named_after(folder, "recovered")


def _named_after(folder: Path, what: str) -> Path:
    """A folder beside another; `.` and `..` have no names of their own."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-{what}")


def part(how: Any) -> Recovery:
    """The recovery that a name, or a mapping of name and options, asks for.

    Raises:
        RequestError: there is none of that name, or it has no such option.
    """
    options = dict(how) if isinstance(how, dict) else {"name": how}
    try:
        cls = plugins.find("llmprune.recovery", str(options.pop("name", None)), Recovery)
        found: Recovery = TypeAdapter(cls).validate_python(options)
    except ValidationError as error:
        raise sentence(error, "recovery") from error
    except ValueError as error:
        raise RequestError("recovery", str(error)) from error
    return found


def _run(out: str | Path, options: dict[str, Any]) -> Run:
    """How to run.

    Raises:
        RequestError: that has no such option.
    """
    known = {field.name for field in dataclasses.fields(Run)}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise RequestError(unknown[0], f"there is no such option; there are {', '.join(sorted(known))}")
    return Run(out=out, **options)


def _dense(name: str, recipe: Recipe, run: Run) -> Job:
    """The job of walking the dense model.

    Raises:
        RequestError: there is none of that name.
    """
    try:
        return job.checkpoint_job(name, recipe, dataclasses.replace(run, out=None, resume=False))
    except RequestError as error:
        raise RequestError("baseline", f"the dense model is needed, and {error}") from error


def _already_done(
    folder: Path, earlier: Report, recovery: Recovery, recipe: Recipe, run: Run, baseline: str | None
) -> Report | None:
    """The report of a folder that needs no going on with; the dense model is looked at if it was named.

    Raises:
        RequestError: the folder was finished with something else.
    """
    out = Path(str(run.out))
    done = finish.finished(out)
    if done is None:
        return None
    then = done.fingerprint or {}
    compared = [
        ("recovery", then.get("recovery"), _asked(recovery)),
        ("model", then.get("model", [None])[0], str(folder)),
        ("pruning", done.recipe, earlier.recipe),
        ("calibration", then.get("recipe", {}).get("calibration"), recipe.calibration.model_dump()),
    ]
    if baseline and (dense := _dense(baseline, recipe, run).source):
        compared.append(("dense model", then.get("dense"), dense.hashes))
    differing = [what for what, was, now in compared if was != now]
    if differing:
        raise RequestError("resume", f"{out} was finished with another {differing[0]}; choose another --out")
    return done


def _asked(recovery: Recovery) -> dict[str, Any]:
    """A recovery as plain data, with every default filled in."""
    return {"name": part_name(recovery), **dataclasses.asdict(recovery)}


def _dense_name(earlier: Report) -> str:
    """The model that was pruned, at the revision that was."""
    name, revision = earlier.model["source"], earlier.model.get("revision")
    return f"{name}@{revision}" if revision else str(name)


def _walk_recipe(recovery: Recovery, text: dict[str, Any]) -> Recipe:
    """A recipe that removes nothing, for what it takes to walk both models and hold a layer's Gram matrix."""
    nothing: dict[str, Any] = {"method": "wanda", "sparsity": 0, "propagation": "layer"}
    if recovery.knows_parts:
        units = {"name": "units", "multiple": 1}
        nothing |= {"method": "magnitude", "pattern": units, "repair": "least_squares", "layout": "padded"}
    return Recipe.parse({**nothing, "calibration": text})


def _require_alike(pruned: Job, dense: Job) -> None:
    """Refuse a dense model that the pruned one cannot have come from.

    Raises:
        RequestError: it names the first size in which they differ.
    """
    ours, theirs = pruned.anatomy, dense.anatomy
    for what, own, other in (
        ("family", ours.family, theirs.family),
        ("depth", len(ours.blocks), len(theirs.blocks)),
        ("hidden size", ours.hidden_size, theirs.hidden_size),
        ("vocabulary", ours.vocabulary, theirs.vocabulary),
    ):
        if own != other:
            raise RequestError(
                "baseline",
                f"the pruned model has the {what} {own}, and {dense.recipe.model} has {other}; name the "
                "model that it was pruned from",
            )


@torch.no_grad()
def _carried_out(
    recovery: Recovery, pruned: Job, dense: Job, earlier: Report, tokens: Tensor | None
) -> Report:
    start = time.perf_counter()
    assert pruned.out is not None
    windows = dense.windows(None, tokens)  # a pruned model would teach its own damage
    assert windows is not None
    needed, host = pruned.plan.needed_bytes, pruned.plan.host_bytes
    both = dataclasses.replace(pruned.plan, needed_bytes=2 * needed, host_bytes=2 * host)
    both.require_fit(pruned.out)  # the two models are walked side by side
    asked = _asked(recovery)
    assert dense.source is not None
    identity = {
        **finish.fingerprint(pruned, windows),
        "dense": dense.source.hashes,
        "recovery": asked,
    }
    draft = Draft(pruned.out, pruned.plan.blocks)
    if draft.begun(identity) is None:
        draft.begin({"fingerprint": identity})
    with job.within_memory():
        done = recovery.recover(Task(pruned, dense, windows.tokens, draft, earlier.recipe["layout"]))
    spent = {"total_s": time.perf_counter() - start}
    result = earlier.model_copy(
        update={
            "recovery": {**asked, "calibration": windows.record(), "time": spent, **done.record},
            "fingerprint": identity,
            "evaluation": None,
        }
    )
    assert pruned.source is not None
    for file in (pruned.source.folder / "config.json", *pruned.source.copied_files()):
        draft.copy(file)
    finish.seal(pruned, draft, done.logits, result, trust=bool(layout.earlier(pruned.anatomy, "layout")))
    return result
