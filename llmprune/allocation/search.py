"""Search the budgets: prune every site to several levels, then find the levels that serve the model best.

Tyr-the-Pruner (Li et al., 2025, arXiv:2503.09657) for whole units, EvoPress (Sieberling et al., 2024,
arXiv:2410.14649) for single weights. The search begins at the best of the rules that `best` compares. Each
round makes levels around the best budget so far, those of a site on the inputs that the sites before it give
on average over theirs. It goes on by mutations that keep the budget, the first round from the levels whose
costs, each on its own, have the least sum. Calibration windows that made no level judge them by the KL
divergence to the dense model, since refitted weights fit their own windows too well; the result of a round is
then tried as the rules are, on held-out windows.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from llmprune import ranks
from llmprune.allocation.base import Allocation, Problem
from llmprune.allocation.best import Best, Contest
from llmprune.checkpoint.once import Once
from llmprune.measured import BudgetTrial, SearchStep, lowest
from llmprune.model.widths import Budget
from llmprune.progress import say
from llmprune.text.windows import with_held_out
from llmprune.walk.demand import Measuring
from llmprune.walk.evolution import Evolution, Fittest
from llmprune.walk.expected import prune_to_levels
from llmprune.walk.grid import Grid, grid_around
from llmprune.walk.levels import Levels
from llmprune.walk.population import HELD, Population

JUDGING = 4  # of so many windows, one judges mutations


@dataclass(frozen=True)
class Search(Best):
    """On held-out windows never worse than uniform budgets or a candidate of `best`."""

    resumes: ClassVar = True

    levels: Annotated[int, Field(ge=3)] = 9
    """Of every site, the centre among them."""

    step: Annotated[float, Field(gt=0, lt=1)] = 0.125
    """Between two levels, as a share of the site; half of that in each further round."""

    rounds: Annotated[int, Field(ge=1)] = 2
    """Times that levels are made, each around the best budget so far."""

    generations: Annotated[int, Field(ge=1)] = 4
    """Of every round."""

    offspring: Annotated[int, Field(ge=1)] = 16
    """Mutations of every generation."""

    tokens: Annotated[int, Field(ge=1)] = 1024
    """That all of them are measured on; four and sixteen times as many for those that are left."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def measuring(self, blocks: int, removed: int, tokens: int) -> Measuring:
        """The candidates, half a pass for each level of two sites a block, and a pass for each mutation."""
        best = super().measuring(blocks, removed, tokens)
        short = min(tokens, self.tokens)
        searching = blocks * self.levels + self.rounds * self.generations * self.offspring
        passes = best.passes + math.ceil(searching * short / max(tokens, 1))
        # Candidates hold their states before a block while those after it are made.
        held = max(best.held, min(2 * HELD, searching * short))
        return Measuring(passes, tokens, held, best.trials + 2 * self.rounds, self.levels)

    def allocate(self, problem: Problem) -> Allocation:
        """Return the best budget that was found.

        Raises:
            RequestError: there is one window.
        """
        if problem.scratch is not None:
            return _Running(self, problem, problem.scratch).found()
        return ranks.from_first(lambda: self._in_passing(problem))

    def _in_passing(self, problem: Problem) -> Allocation:
        """The same where the run writes no files."""
        with tempfile.TemporaryDirectory(prefix="llmprune-search-") as folder:
            return _Running(self, problem, Path(folder)).found()


class _Running:
    """One search; an interrupted one resumes after what is in its folder."""

    def __init__(self, asked: Search, problem: Problem, folder: Path) -> None:
        self._contest = Contest(problem)
        self._problem, self._folder, self._once = self._contest.problem, folder, Once(folder)
        self._asked = asked.settled(problem.method, self._contest.kind, problem.sparsity)
        rest = self._problem.batches
        alone = sum(map(len, rest)) == 1
        self._makes, self._judges = (rest, rest) if alone else with_held_out(rest, JUDGING)
        self._found: list[tuple[Budget, BudgetTrial]] = []

    def found(self) -> Allocation:
        """Try the candidates, then search round by round around the best."""
        steps: list[SearchStep] = []
        rule = self._contest.by_rule
        self._found = ranks.divided(
            list(enumerate(self._asked.parts)),
            lambda one: self._once(f"candidate-{one[0]}", partial(rule, one[1])),
        )
        for number in range(1, self._asked.rounds + 1):
            step = self._asked.step / 2 ** (number - 1)
            grid = grid_around(self._problem, self._best, step, self._asked.levels)
            levels = Levels(self._folder / f"levels-{number}")
            done = self._once(f"round-{number}", partial(self._round, grid, levels, number))
            ranks.from_first(partial(shutil.rmtree, levels.folder))
            steps += done["steps"]
            compute = partial(self._contest.worth, {"name": "search", "rounds": number}, done["budget"])
            self._found.append(ranks.from_first(partial(self._once, f"result-{number}", compute)))
        return Allocation(self._best, tried=self._tried, searched=steps)

    @property
    def _tried(self) -> list[BudgetTrial]:
        return [trial for _, trial in self._found]

    @property
    def _best(self) -> Budget:
        return self._found[lowest(self._tried)][0]

    def _round(self, grid: Grid, levels: Levels, number: int) -> dict[str, Any]:
        """Make the levels, and search among them."""
        ranks.from_first(lambda: prune_to_levels(self._problem, self._makes, grid, levels))
        population = Population(self._problem.store, self._problem.probe, levels)
        steps: list[SearchStep] = []
        chosen = (0,) * len(grid.rows)
        # Only the first round asks what each level costs alone, which takes longest.
        for generation in range(0 if number == 1 else 1, self._asked.generations + 1):
            seed = f"{self._asked.seed}-{number}-{generation}"
            evolution = Evolution(population, grid, self._judges, self._asked.tokens, seed)
            following = partial(evolution.next, chosen, self._asked.offspring)
            compute = following if generation else evolution.start
            fittest = Fittest(*self._once(f"generation-{number}-{generation}", compute))
            chosen = tuple(fittest.levels)
            steps.append({"round": number, "generation": generation, "kl": fittest.kl})
            say(f"round {number}, generation {generation}: KL {fittest.kl:.4f} on calibration windows")
        return {"budget": grid.around(chosen).budget, "steps": steps}
