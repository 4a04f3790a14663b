"""Find the recipes that land on a target, without pruning by any."""

from __future__ import annotations

from dataclasses import replace

from llmprune.checkpoint import reader, source
from llmprune.errors import RequestError
from llmprune.measured import Planned, Tried
from llmprune.planning.candidates import Candidate, candidates, corrected
from llmprune.planning.prices import bytes_of, in_seconds
from llmprune.planning.speed import latencies
from llmprune.planning.target import Target
from llmprune.plugins import Options
from llmprune.recipe import Recipe
from llmprune.run import job, tokens
from llmprune.run.asked import Run
from llmprune.text.calibration import calibration_of
from llmprune.text.sources.base import Documents

FAIR = 0.03  # a miss in speed by more is corrected, since what removes less is judged better


class Planner:
    """Finds the candidates.

    Args:
        model: a folder, a .gguf file or a Hub id.
        target: what is to be reached.
        text: a recipe's `calibration`.
        run: how it is pruned.
    """

    def __init__(self, model: str, target: Target, text: Options, run: Run) -> None:
        self.model, self.target, self.run = model, target, run
        self.text = calibration_of(text)
        self.source = source.find(model, trust_remote_code=run.trust_remote_code)
        self.prices = bytes_of(self.source)
        if target.of == "decode":
            self.prices = in_seconds(self.prices, latencies(self.source, run, target, self.prices))
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
        found = []
        self.refused = []
        for one in candidates(self.prices, self.target):
            recipe = self._recipe(one)
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

    def misses(self, tried: Tried) -> float:
        """By which share of what was asked a candidate's result misses it."""
        return self.target.misses(tried.get("reached", self.prices.whole), self.goal)

    def lands(self, tried: Tried) -> bool:
        """Whether a candidate's result is as near as is allowed."""
        return self.misses(tried) <= self.target.near

    def again(self, tried: Tried) -> Tried | None:
        """A candidate that takes more or less away, after one was not as fast as it was to be."""
        if "reached" not in tried:
            return None
        gained = (self.prices.whole - tried["reached"]) / (self.prices.whole - tried["expected"])
        if self.target.of != "decode" or self.misses(tried) <= FAIR or gained <= 0:
            return None
        if (one := corrected(self.prices, self.target, tried["name"], gained)) is None:
            return None
        recipe = self._recipe(one)
        try:
            self._require(recipe)
        except RequestError:  # it would remove what cannot go
            return None
        return _tried(one, recipe)

    def _recipe(self, one: Candidate) -> Recipe:
        return one.recipe(self.prices, self.text.flat(), counts=isinstance(self.text.source, Documents))

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
