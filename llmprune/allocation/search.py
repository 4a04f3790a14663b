"""Search the budgets: prune every site to several levels, then find the levels that serve the model best.

Tyr-the-Pruner (Li et al., 2025, arXiv:2503.09657) for whole units, EvoPress (Sieberling et al., 2024,
arXiv:2410.14649) for single weights. The levels of a site are made on the inputs that the sites before it
give on average over their levels. The search begins with the levels whose costs, each on its own, have the
least sum, and goes on by mutations that keep the budget. What decides is the KL divergence to the dense model
on calibration windows that made no level, since refitted weights fit theirs too well; between the result and
uniform budgets, that on further ones.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.allocation.uniform import Uniform
from llmprune.checkpoint.once import Once
from llmprune.measured import BudgetTrial, SearchStep
from llmprune.progress import say
from llmprune.text.windows import with_held_out
from llmprune.walk.demand import Measuring
from llmprune.walk.evolution import Best, Evolution
from llmprune.walk.expected import prune_to_levels
from llmprune.walk.grid import Grid, grid_around
from llmprune.walk.levels import Levels
from llmprune.walk.population import HELD, Population

JUDGING = 4  # of so many windows, one judges mutations


@dataclass(frozen=True)
class Search(Allocator):
    """On held-out windows never worse than uniform; sites are then pruned anew at the budget found."""

    needs_text: ClassVar = True
    holds_out: ClassVar = True
    resumes: ClassVar = True
    serves: ClassVar = ("weights", "units")

    levels: Annotated[int, Field(ge=3)] = 9
    """Of every site, the centre among them."""

    step: Annotated[float, Field(gt=0, lt=1)] = 0.125
    """Between two levels, as a share of the site; half of that in each further round."""

    rounds: Annotated[int, Field(ge=1)] = 2
    """Times that levels are made, each around the result of the one before."""

    generations: Annotated[int, Field(ge=1)] = 4
    """Of every round."""

    offspring: Annotated[int, Field(ge=1)] = 16
    """Mutations of every generation."""

    tokens: Annotated[int, Field(ge=1)] = 1024
    """That all of them are measured on; four and sixteen times as many for those that are left."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def measuring(self, blocks: int, removed: int, tokens: int) -> Measuring:
        """Half a pass for each level of two sites a block, and a pass for each mutation."""
        passes = blocks * self.levels + self.rounds * self.generations * self.offspring
        # Candidates hold their states before a block while those after it are made.
        held = min(2 * HELD, passes * tokens)
        return Measuring(passes, min(tokens, self.tokens), held, self.rounds, self.levels)

    def allocate(self, problem: Problem) -> Allocation:
        """Return the best budget that was found.

        Raises:
            RequestError: there is one window.
        """
        if problem.scratch is not None:
            return _Running(self, problem, problem.scratch).found()
        with tempfile.TemporaryDirectory(prefix="llmprune-search-") as folder:
            return _Running(self, problem, Path(folder)).found()


class _Result(NamedTuple):
    """What one round ended with, and its divergence on the held-out windows."""

    grid: Grid
    kl: float


class _Running:
    """One search; an interrupted one resumes after what is in its folder."""

    def __init__(self, asked: Search, problem: Problem, folder: Path) -> None:
        self._asked, self._problem, self._folder = asked, problem, folder
        rest, self._held_out = with_held_out(problem.batches)
        several = sum(map(len, rest)) > 1
        self._makes, self._judges = with_held_out(rest, JUDGING) if several else (rest, rest)
        self._once = Once(folder)

    def found(self) -> Allocation:
        """Search round by round; take the best of the rounds' results and of uniform budgets."""
        uniform = Uniform().allocate(self._problem).budget
        grid = grid_around(self._problem, uniform, self._asked.step, self._asked.levels)
        results: list[_Result] = []
        steps: list[SearchStep] = []
        for number in range(1, self._asked.rounds + 1):
            levels = Levels(self._folder / f"levels-{number}")
            done = self._once(f"round-{number}", partial(self._round, grid, levels, number))
            shutil.rmtree(levels.folder)
            if not results:
                results.append(_Result(grid, done["before"]))
            results.append(_Result(grid.around(done["levels"]), done["after"]))
            steps += done["steps"]
            grid = results[-1].grid.finer()
            say(f"round {number}: held-out KL {done['after']:.4f}, of uniform budgets {results[0].kl:.4f}")
        best = min(results, key=lambda result: result.kl).grid
        return Allocation(best.budget, tried=_tried(results), searched=steps)

    def _round(self, grid: Grid, levels: Levels, number: int) -> dict[str, Any]:
        """Make the levels, and search among them."""
        prune_to_levels(self._problem, self._makes, grid, levels)
        population = Population(self._problem.store, self._problem.probe, levels)
        steps: list[SearchStep] = []
        centre = chosen = (0,) * len(grid.rows)
        # Further rounds begin with the best of the last one, which is the centre of their levels.
        for generation in range(0 if number == 1 else 1, self._asked.generations + 1):
            seed = f"{self._asked.seed}-{number}-{generation}"
            evolution = Evolution(population, grid, self._judges, self._asked.tokens, seed)
            compute = evolution.start
            if generation:
                compute = partial(evolution.next, chosen, self._asked.offspring)
            best = Best(*self._once(f"generation-{number}-{generation}", compute))
            chosen = tuple(best.levels)
            steps.append({"round": number, "generation": generation, "kl": best.kl})
            say(f"round {number}, generation {generation}: KL {best.kl:.4f} on calibration windows")
        before, after = population.cost([centre, chosen], self._held_out, "comparing on held-out windows")
        return {"levels": chosen, "before": before, "after": after, "steps": steps}


def _tried(results: list[_Result]) -> list[BudgetTrial]:
    """Uniform budgets, and what each round ended with."""
    tried: list[BudgetTrial] = [{"allocation": {"name": "uniform"}, "kl": results[0].kl}]
    for number, result in enumerate(results[1:], 1):
        tried.append({"allocation": {"name": "search", "rounds": number}, "kl": result.kl})
    return tried
