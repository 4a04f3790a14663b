"""Reach a target: prune a model by every recipe that lands on it, judge the results, and keep the best."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from llmprune import pruning, ranks, report
from llmprune.checkpoint import draft as drafts
from llmprune.checkpoint import reader, reload, source
from llmprune.checkpoint.draft import Draft
from llmprune.checkpoint.once import Once
from llmprune.errors import RequestError
from llmprune.measured import Planned, Tried
from llmprune.planning.candidates import Candidate, candidates
from llmprune.planning.judging import Judge
from llmprune.planning.prices import bytes_of, in_seconds
from llmprune.planning.speed import latencies, speed
from llmprune.planning.target import Target, parse
from llmprune.plugins import Options
from llmprune.progress import say
from llmprune.recipe import Recipe
from llmprune.report import Report
from llmprune.run import finish, job, tokens
from llmprune.run.asked import Run, run_of
from llmprune.run.job import Job
from llmprune.run.windows import windows
from llmprune.text.calibration import calibration_of
from llmprune.text.sources.base import Documents
from llmprune.text.windows import sharing

HELD_OUT = 4096  # tokens that judge
SEED = 1_000_003  # that is added to the calibration's, for windows of their own


def plan(model: str, target: str, text: Options, **how: object) -> Planned:
    """The candidates for a target, none of them tried.

    Args:
        model: a folder, a .gguf file or a Hub id.
        target: what is to be reached: `6GiB`, `0.8x` of the bytes of the dense weight files, `1.3x-decode`.
        text: a recipe's `calibration`.
        how: fields of Run; nothing is written.

    Raises:
        RequestError: no candidate lands on the target.
    """
    return _Planning(model, parse(target), text, run_of(how)).planned()


def reach(model: str, target: str, text: Options, **how: object) -> Report:
    """Prune a model to a target, and write the folder of the best candidate.

    Args:
        model: as for `plan`.
        target: the same.
        text: the same.
        how: fields of Run, such as `out`; with `resume` an interrupted run resumes with its last candidate.

    Raises:
        RequestError: no candidate lands on the target; nothing was written.
        JobError: pruning failed.
    """
    run, wanted = run_of(how), parse(target)
    if run.folder is None:
        raise RequestError("out", "no folder was named for the pruned checkpoint; give --out")
    if ranks.count() > 1:
        raise RequestError("ranks", f"{ranks.count()} processes were started, and one plans; start one")
    if run.resume and (done := finish.finished(run.folder)):
        return done
    drafts.require_usable(run.folder, resume=run.resume)
    return _Reaching(_Planning(model, wanted, text, run), run.folder).best()


class _Planning:
    """Finds the candidates."""

    def __init__(self, model: str, target: Target, text: Options, run: Run) -> None:
        self.model, self.target, self.run = model, target, run
        self.text = calibration_of(text)
        self.source = source.find(model, trust_remote_code=run.trust_remote_code)
        self.prices = bytes_of(self.source)
        if target.of == "decode":
            self.prices = in_seconds(self.prices, latencies(self.source, run))
        self.goal = target.goal(self.prices.whole)
        self.refused: list[str] = []

    def planned(self) -> Planned:
        """What is known before anything is pruned."""
        possible = self.possible()
        return {
            "target": self.target.said,
            "dense": self.prices.whole,
            "goal": self.goal,
            "candidates": [_tried(one, recipe) for one, recipe in possible],
            "refused": self.refused,
            "chosen": None,
            # A divergence is of one vocabulary; bytes of text are the same for all.
            "judged_by": "bits_per_byte" if any(one.rows for one, _ in possible) else "kl",
        }

    def possible(self) -> list[tuple[Candidate, Recipe]]:
        """The candidates that this model can take, with their recipes.

        Raises:
            RequestError: there is none.
        """
        counts = isinstance(self.text.source, Documents)
        found = []
        self.refused = []
        for one in candidates(self.prices, self.target):
            recipe = one.recipe(self.prices, self.text.flat(), counts=counts)
            try:
                self._require(recipe)
            except RequestError as error:
                self.refused.append(f"{one.name}: {error}")
            else:
                found.append((one, recipe))
        if not found:
            raise RequestError(
                "target", f"{self.target.said} was asked, and {self.refused[0]}; choose what goes yourself"
            )
        return found

    def _require(self, recipe: Recipe) -> None:
        """Refuse what the model cannot take, as far as no weight and no text tells."""
        how = replace(self.run, out=None)
        job.require_steps(self.model, recipe, how)
        first, *_ = recipe.every_step
        if first.sites.shares != "rows":
            job.checkpoint_job(self.model, first, how)
            return
        blind = first.model_copy(update={"calibration": calibration_of({"dataset": "none"})})
        tokens.kept(self.source, blind, reader.blueprint(self.source, blind.sites))


def _tried(candidate: Candidate, recipe: Recipe) -> Tried:
    return {"name": candidate.name, "recipe": recipe.resolved(), "expected": candidate.expected}


class _Reaching:
    """Tries the candidates; the best so far, and what was measured, are in the scratch folder of the run."""

    def __init__(self, planning: _Planning, out: Path) -> None:
        self._planning, self._out = planning, out
        self._planned = planning.planned()
        self._draft = Draft(out, 0)
        self._todo = job.checkpoint_job(planning.model, _measuring(planning), planning.run)
        self._windows = _held_out(self._todo)
        self._judge: Judge | None = None

    def best(self) -> Report:
        """Try all, and move the best into place."""
        planning, draft = self._planning, self._draft
        asked: dict[str, Any] = {"target": planning.target.said, "text": planning.text.model_dump()}
        draft.claim(finish.identity(self._todo.model, asked, None))
        once = Once(draft.scratch)
        self._planned = once("planned", lambda: self._planned)
        self._planned["dense_bits_per_byte"] = once("dense", lambda: self._judging().dense)
        found = self._planned["candidates"]
        for number in range(len(found)):
            found[number] |= once(f"candidate-{number}", partial(self._try, number))
            self._drop_losers()
        if healed := _healed(found[self._chosen()]):
            found.append(healed)
            found[-1] |= once(f"candidate-{len(found) - 1}", partial(self._try, len(found) - 1))
        return self._publish()

    def _judging(self) -> Judge:
        if self._judge is None:
            model = self._todo.model
            self._judge = Judge(model, model.tokenizer(None), self._windows)
        return self._judge

    def _try(self, number: int) -> dict[str, Any]:
        """Prune by a candidate, and measure what came of it."""
        tried = self._planned["candidates"][number]
        say(f"candidate {number + 1} of {len(self._planned['candidates'])}: {tried['name']}")
        planning, folder = self._planning, self._folder(number)
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
            reached = planning.prices.whole / speed(planning.model, folder, planning.run)
        return {"reached": reached, **worth._asdict()}

    def _folder(self, number: int) -> Path:
        """Of a candidate's result, called like the folder that it may become."""
        return self._draft.scratch / f"candidate-{number}" / self._out.resolve().name

    def _chosen(self) -> int:
        """The number of the candidate that was judged best, of those that landed on the target."""
        found = self._planned["candidates"]
        known = [number for number, one in enumerate(found) if "bits_per_byte" in one]
        goal, most = self._planned["goal"], self._planning.target.near
        near = [n for n in known if abs(found[n].get("reached", 0) / goal - 1) <= most]
        by = self._planned["judged_by"]
        return min(near or known, key=lambda n: float(found[n][by]))  # type: ignore[literal-required]

    def _drop_losers(self) -> None:
        """Free the disk of what has been judged and lost; a resumed run may have more than it has read."""
        best = self._chosen()
        for number, one in enumerate(self._planned["candidates"]):
            if "reached" in one and number != best:
                shutil.rmtree(self._folder(number).parent, ignore_errors=True)

    def _publish(self) -> Report:
        """Move the best result into place, with the plan in its report."""
        best = self._chosen()
        folder, draft = self._folder(best), self._draft
        self._planned["chosen"] = self._planned["candidates"][best]["name"]
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
    return {
        "name": f"{best['name']}, reconstructed",
        "recipe": recipe.resolved(),
        "expected": best["expected"],
    }


def _measuring(planning: _Planning) -> Recipe:
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
