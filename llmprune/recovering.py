"""Recover a pruned checkpoint: weights closer to the dense model, in the same sizes and under the same zeros,
unless a schedule removes more.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from llmprune import plugins, ranks, report
from llmprune.checkpoint import draft as drafts
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.journal import RunHeader
from llmprune.checkpoint.lock import held
from llmprune.checkpoint.opened import Opened
from llmprune.errors import JobError, RequestError
from llmprune.model.shapes import from_earlier_pruning
from llmprune.plugins import Options
from llmprune.recipe import Recipe
from llmprune.recipe.parts import recovery_of
from llmprune.recovery.base import Recovered, Recovery, Removed, Task
from llmprune.report import RecipeRecord, Report
from llmprune.run import finish, job
from llmprune.run.asked import Run, run_of
from llmprune.run.recovery_job import RecoveryJob, dense_model, opened
from llmprune.run.windows import windows
from llmprune.text.calibration import Calibration, as_now, calibration_of, with_defaults
from llmprune.text.windows import batched, size_of


def recover(
    model: str | Path,
    how: str | Options | Recovery = "lora",
    *,
    out: str | Path | None = None,
    baseline: str | None = None,
    calibration: Options | None = None,
    tokens: Tensor | None = None,
    **options: object,
) -> Report:
    """Recover a pruned checkpoint into a new folder.

    Args:
        model: the folder of a pruned checkpoint.
        how: `distill`, `lora`, `reconstruct`, `refine`, or a mapping of that `name` and its options.
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
    earlier = report.read(folder)
    if earlier is None:
        raise RequestError("model", f"{model} is no folder that llmprune has pruned: it holds no report")
    recovery = recovery_of(how)
    run = run_of({**options, "out": out if out is not None else beside(folder)})
    asked = with_defaults(dict(calibration or {}), earlier.recipe["calibration"])
    if tokens is not None:
        asked |= size_of(tokens)
    elif "samples" not in (calibration or {}) and (own := recovery.samples(asked["length"])):
        asked["samples"] = own
    text = calibration_of(asked)
    if ranks.count() > 1 and not recovery.spreads:
        raise RequestError("ranks", "several processes share a distillation alone; start one")
    request = (folder, earlier, recovery, text, run, baseline)
    with held(run.folder):
        if run.resume and (done := ranks.from_first(lambda: _already_done(*request))):
            return done
        pruned, dense, shared = ranks.everywhere(lambda: opened(*request))
        return _carry_out(RecoveryJob(recovery, text, run, earlier, pruned, dense, shared), tokens)


def folder_to_prune(asked: Recipe, run: Run) -> Run:
    """Where to prune what a recipe recovers afterwards: into a folder beside the one that was named.

    Raises:
        RequestError: there is no folder to recover.
    """
    if asked.recovery is None:
        return run
    if run.out is None:
        raise RequestError("recovery", "only a checkpoint in a folder can be recovered; name one with out")
    out = Path(run.out)
    drafts.require_usable(out, resume=run.resume)
    return dataclasses.replace(run, out=_named_after(out, "pruned"))


def recover_pruned(asked: Recipe, run: Run, pruned: Report, tokens: Tensor | None = None) -> Report:
    """Recover what was pruned, if the recipe asks for it.

    Raises:
        JobError: the recovery failed; it says where the pruned model is.
    """
    if asked.recovery is None:
        return pruned
    how, folder = dataclasses.asdict(run), Path(str(folder_to_prune(asked, run).out))
    recovery = asked.recovery
    try:
        if not recovery.spreads:
            return ranks.from_first(lambda: recover(folder, recovery, tokens=tokens, **how))
        return recover(folder, recovery, tokens=tokens, **how)
    except JobError as error:
        raise JobError(f"{error}; {folder} holds the pruned model, whole") from error


def beside(folder: Path) -> Path:
    """The folder of a recovered checkpoint unless another is named."""
    return _named_after(folder, "recovered")


def _named_after(folder: Path, what: str) -> Path:
    """A folder beside another; `.` and `..` are resolved first."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-{what}")


def _already_done(
    folder: Path, earlier: Report, recovery: Recovery, text: Calibration, run: Run, baseline: str | None
) -> Report | None:
    """Return the report of a complete folder, if it is the result of this request.

    Raises:
        RequestError: it is the result of another request.
    """
    out = Path(str(run.out))
    done = finish.finished(out)
    if done is None:
        return None
    then = done.fingerprint or {}
    compared = [
        ("recovery", then.get("recovery"), _asked(recovery)),
        ("model", then.get("model", [None])[0], str(folder)),
        ("pruning", then.get("pruning", done.recipe), earlier.recipe),
        ("calibration", as_now(then.get("text", {})), text.model_dump()),
    ]
    if baseline and (dense := dense_model(baseline, recovery, text, run).source):
        compared.append(("dense model", then.get("dense"), dense.hashes))
    differing = [what for what, was, now in compared if was != now]
    if differing:
        raise RequestError("resume", f"{out} was finished with another {differing[0]}; choose another --out")
    return done


def _asked(recovery: Recovery) -> dict[str, Any]:
    """A recovery as plain data, with every default filled in."""
    return plugins.plain(recovery)


@torch.no_grad()
def _carry_out(asked: RecoveryJob, tokens: Tensor | None) -> Report:
    start = time.perf_counter()
    pruned, dense, needed = asked.pruned, asked.dense, asked.plan
    asked.recovery.require(pruned, dense, asked.text.samples, needed.length)
    # The pruned model would generate damaged text; but a cut vocabulary has ids of its own.
    text = ranks.from_first(
        lambda: windows(pruned if asked.shared.cut else dense, asked.text, needed, tokens=tokens)
    )
    asked.run.show(text)
    assert text is not None and asked.run.folder is not None and dense.source is not None
    ranks.everywhere(lambda: needed.require_fit(asked.run.folder))
    how = _asked(asked.recovery)
    # The text's options as well as its tokens: a resumed run must have been asked for the same.
    request: dict[str, Any] = {"text": asked.text.model_dump(), "dense": dense.source.hashes, "recovery": how}
    if asked.recovery.removes:  # so that the report's recipe will say what is gone then
        request["pruning"] = asked.earlier.recipe
    fingerprint = finish.identity(pruned, request, text.record())
    ranks.require_same(fingerprint)
    draft = Draft(asked.run.folder, needed.blocks)
    header = draft.resume(fingerprint)
    if header is None:
        header = RunHeader(fingerprint=fingerprint, batch=needed.batch, together=needed.together)
        draft.begin(header)
    batches = batched(text.tokens, header.batch)
    layout = asked.earlier.recipe["layout"]
    with job.within_memory():
        task = Task(pruned, dense, batches, draft, header.together, asked.counterparts, layout, asked.shared)
        done = asked.recovery.recover(task)
    spent = {"total_s": time.perf_counter() - start}
    result = asked.earlier.model_copy(
        update={
            "recovery": {**how, "calibration": text.record(), "time": spent, **done.record},
            "fingerprint": fingerprint,
            "evaluation": None,
        }
    )
    return ranks.from_first(lambda: _finished(pruned, draft, done, result))


def _finished(pruned: Opened, draft: Draft, done: Recovered, result: Report) -> Report:
    """Complete the folder, check that it loads, and move it into place."""
    assert pruned.source is not None
    for file in (pruned.source.folder / "config.json", *pruned.source.copied_files()):
        draft.copy(file)
    if done.removed is not None:
        _record(result, done.removed)
        _mark(draft, done.removed)
    trust = bool(from_earlier_pruning(pruned.anatomy, "layout"))
    finish.seal(pruned, draft, pruned.probe(), done.logits, result, trust=trust)
    return result


def _record(result: Report, removed: Removed) -> None:
    """Put what is gone after a recovery that removed more into the report."""
    result.recipe = cast(
        RecipeRecord,
        {**result.recipe, "sparsity": removed.share, "pattern": removed.pattern.resolved()},
    )
    for site in result.sites:
        if site.name in removed.zeros:
            site.asked, site.error = removed.share, None
            site.zeros = site.dropped = removed.zeros[site.name]
            site.reached = site.zeros / site.weights
    after = result.totals["parameters_after"], result.totals["bytes_after"]
    result.totals = report.totals(result.sites, result.model, *after)


def _mark(draft: Draft, removed: Removed) -> None:
    """The same in the config's own mark."""
    file = draft.folder / "config.json"
    settings = json.loads(file.read_text())
    settings["llmprune"] |= {"sparsity": removed.share, "pattern": str(removed.pattern)}
    draft.write_text("config.json", json.dumps(settings, indent=2) + "\n")
