"""Reach a target: prune a model by every recipe that lands on it, judge the results, and keep the best."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from llmprune import pruning, ranks, report
from llmprune.checkpoint import draft as drafts
from llmprune.checkpoint import reload
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.lock import held
from llmprune.checkpoint.once import Once
from llmprune.errors import RequestError
from llmprune.measured import Planned, Tried
from llmprune.planning.judging import Judge
from llmprune.planning.planner import Planner
from llmprune.planning.speed import speed
from llmprune.planning.target import parse
from llmprune.plugins import Options
from llmprune.progress import say
from llmprune.recipe import Recipe
from llmprune.report import Report
from llmprune.run import finish, job
from llmprune.run.asked import run_of
from llmprune.run.job import Job
from llmprune.run.windows import windows
from llmprune.text.windows import sharing

HELD_OUT = 4096  # tokens that judge
SEED = 1_000_003  # that is added to the calibration's, for windows of their own


def plan(model: str, target: str, text: Options, engine: str | None = None, **how: object) -> Planned:
    """The candidates for a target, none of them tried.

    Args:
        model: a folder, a .gguf file or a Hub id.
        target: what is to be reached: `6GiB`, `0.8x` of the bytes of the dense weight files, `1.3x-decode`.
        text: a recipe's `calibration`.
        engine: in which speed is measured: `transformers`, or `llama.cpp` with q8_0 files.
        how: fields of Run; nothing is written.

    Raises:
        RequestError: no candidate lands on the target.
    """
    return Planner(model, parse(target, engine), text, run_of(how)).planned()


def reach(model: str, target: str, text: Options, engine: str | None = None, **how: object) -> Report:
    """Prune a model to a target, and write the folder of the best candidate.

    Args:
        model: as for `plan`.
        target: the same.
        text: the same.
        engine: the same.
        how: fields of Run, such as `out`; with `resume` an interrupted run resumes with its last candidate.

    Raises:
        RequestError: no candidate lands on the target; nothing was written.
        JobError: pruning failed.
    """
    run, wanted = run_of(how), parse(target, engine)
    if run.folder is None:
        raise RequestError("out", "no folder was named for the pruned checkpoint; give --out")
    if ranks.count() > 1:
        raise RequestError("ranks", f"{ranks.count()} processes were started, and one plans; start one")
    with held(run.folder):
        if run.resume and (done := finish.finished(run.folder)):
            return done
        drafts.require_usable(run.folder, resume=run.resume)
        return _Reaching(Planner(model, wanted, text, run), run.folder).best()


class _Reaching:
    """Tries the candidates; the best so far, and what was measured, are in the scratch folder of the run."""

    def __init__(self, planning: Planner, out: Path) -> None:
        self._begin = time.perf_counter()
        self._planning, self._out = planning, out
        self._planned = planning.planned()
        self._draft = Draft(out, 0)
        self._todo = job.checkpoint_job(planning.model, _measuring(planning), planning.run)
        self._windows = _held_out(self._todo)
        self._judge: Judge | None = None
        self._labels: dict[str, str] = {}  # of the results in the scratch folder, by candidate

    def best(self) -> Report:
        """Try all, and move the best into place."""
        planning, draft = self._planning, self._draft
        asked: dict[str, Any] = {"target": planning.target.said, "text": planning.text.model_dump()}
        if planning.target.of == "decode":
            asked["engine"] = planning.target.engine
        draft.claim(finish.identity(self._todo.model, asked, None))
        once = Once(draft.scratch)
        self._planned = once("planned", lambda: self._planned)
        self._planned["dense_bits_per_byte"] = once("dense", lambda: self._judging().dense)
        found = self._planned["candidates"]
        for number, tried in enumerate(found):
            say(f"candidate {number + 1} of {len(found)}: {tried['name']}")
            found[number] = self._nearest(once, tried, f"candidate-{number}")
            self._drop_losers()
        if healed := _healed(self._chosen()):
            say(f"one more candidate: {healed['name']}")
            found.append(self._measured(once, healed, f"candidate-{len(found)}"))
        return self._publish()

    def _nearest(self, once: Once, tried: Tried, label: str) -> Tried:
        """A candidate with what came of it, or of a second try that lands nearer."""
        first = self._measured(once, tried, label)
        if (other := self._planning.again(first)) is None:
            return first
        reached = self._planning.target.words(first["reached"], self._planning.prices.whole)
        say(f"it reaches {reached}, and is solved once more")
        second = self._measured(once, other, f"{label}-again")
        best = min(first, second, key=self._planning.misses)
        self._labels[tried["name"]] = label if best is first else f"{label}-again"
        shutil.rmtree(
            self._draft.scratch / (f"{label}-again" if best is first else label), ignore_errors=True
        )
        return best

    def _measured(self, once: Once, tried: Tried, label: str) -> Tried:
        """A candidate with what came of it."""
        self._labels[tried["name"]] = label
        return cast(Tried, tried | once(label, partial(self._try, tried)))

    def _judging(self) -> Judge:
        if self._judge is None:
            model = self._todo.model
            self._judge = Judge(model, model.tokenizer(None), self._windows)
        return self._judge

    def _try(self, tried: Tried) -> dict[str, Any]:
        """Prune by a candidate, and measure what came of it."""
        planning, folder = self._planning, self._folder(tried)
        done = pruning.prune(
            planning.model,
            Recipe.parse(tried["recipe"]),
            out=folder,
            resume=True,
            max_memory=planning.run.max_memory,
            device=planning.run.device,
            dtype=planning.run.dtype,
            trust_remote_code=planning.run.trust_remote_code,
        )
        worth = self._judging().worth(folder)
        reached = float(done.totals["bytes_after"])
        if planning.target.of == "decode":
            try:
                ratio = speed(planning.source, folder, planning.run, planning.target)
            except RequestError as error:  # such as sizes that llama.cpp does not take
                return {"refused": str(error)}
            reached = planning.prices.whole / ratio
        return {"reached": reached, **worth._asdict()}

    def _folder(self, tried: Tried) -> Path:
        """Of a candidate's result, called like the folder that it may become."""
        return self._draft.scratch / self._labels[tried["name"]] / self._out.resolve().name

    def _chosen(self) -> Tried:
        """The candidate that was judged best, of those that landed on the target; the nearest if none did."""
        known = [one for one in self._planned["candidates"] if "bits_per_byte" in one]
        if not known:
            refused = next(one["refused"] for one in self._planned["candidates"] if "refused" in one)
            raise RequestError("target", f"no candidate can be measured: {refused}")
        near = [one for one in known if self._planning.lands(one)]
        by = self._planned["judged_by"]
        if not near:
            return min(known, key=self._planning.misses)
        return min(near, key=lambda one: float(one[by]))  # type: ignore[literal-required]

    def _drop_losers(self) -> None:
        """Free the disk of what has been judged and lost; a resumed run may have more than it has read."""
        tried = [one for one in self._planned["candidates"] if "reached" in one or "refused" in one]
        best = self._chosen() if any("reached" in one for one in tried) else None
        for one in tried:
            if one is not best:
                shutil.rmtree(self._folder(one).parent, ignore_errors=True)

    def _publish(self) -> Report:
        """Move the best result into place, with the plan in its report."""
        best = self._chosen()
        folder, draft = self._folder(best), self._draft
        self._planned["chosen"] = best["name"]
        self._planned["landed"] = self._planning.lands(best)
        self._planned["seconds"] = time.perf_counter() - self._begin
        done = report.read(folder)
        assert done is not None and done.reload is not None
        trust = ", trust_remote_code=True" if "trust_remote_code" in done.reload["line"] else ""
        done.reload["line"] = reload.LINE.format(folder=self._out, trust=trust)
        done.planned = self._planned
        (folder / report.FILE).write_text(done.to_json(), encoding="utf-8")
        for file in sorted(folder.iterdir(), key=lambda file: file.name == report.FILE):  # this one last
            file.replace(draft.folder / file.name)
        draft.publish()
        return done


def _healed(best: Tried) -> Tried | None:
    """The best candidate with a recovery that takes two forward passes, where that serves it."""
    try:
        recipe = Recipe.parse(best["recipe"] | {"recovery": "reconstruct"})
    except RequestError:
        return None
    if all(step.sites.shares == "rows" for step in recipe.every_step):
        return None  # its blocks are the dense model's
    return {
        "name": f"{best['name']}, reconstructed",
        "recipe": recipe.resolved(),
        "expected": best["expected"],
    }


def _measuring(planning: Planner) -> Recipe:
    """A recipe that has the dense model read the text, so that its windows can be had."""
    return Recipe.parse({"method": "wanda", "calibration": planning.text.flat()})


def _held_out(todo: Job) -> Tensor:
    """Windows [N, L] of the same text, of which none has a run of tokens in common with one that calibrates.

    Raises:
        RequestError: the text has too few.
    """
    text, length = todo.recipe.calibration, todo.plan.length
    calibrating = windows(todo.model, text, todo.plan)
    own = {"seed": (text.seed + SEED) % 2**31, "samples": 2 * max(4, HELD_OUT // length)}
    others = windows(todo.model, text.model_copy(update=own), todo.plan)
    assert calibrating is not None and others is not None
    for shown in (calibrating, others):
        todo.run.show(shown)
    apart = others.tokens[~sharing(others.tokens, calibrating.tokens)]
    if len(apart) < 2:
        raise RequestError(
            "calibration",
            f"{text.source.dataset} has too little text beside the {text.samples} windows that calibrate to "
            "judge candidates by; ask for fewer --samples",
        )
    return apart[: max(4, HELD_OUT // length)]
