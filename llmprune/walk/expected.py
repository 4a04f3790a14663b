"""Prune every site to all its levels, on what the sites before it put out on average over theirs.

Tyr-the-Pruner's *expected error accumulation* (arXiv:2503.09657, equation 5): which level an earlier site
will have is not known yet, so later ones are calibrated on the mean of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmprune.methods.base import Method, PruningMethod, Weights
from llmprune.tensors.several import joined
from llmprune.tensors.statistics import Nothing, Statistic
from llmprune.walk.grid import Grid, Row
from llmprune.walk.levels import BlockLevels, Levels
from llmprune.walk.problem import Problem
from llmprune.walk.solve import solve
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk


def prune_to_levels(problem: Problem, batches: list[Tensor], grid: Grid, levels: Levels) -> None:
    """Write the levels of every block, but those that are there already; the model stays as it is.

    Args:
        problem: what is pruned, and how.
        batches: token ids to calibrate on, each [B, T].
        grid: what the sites lose at their levels.
        levels: where they are written.
    """
    rows = {row.site.name: row for row in grid.rows}
    for stage in Walk(problem.store, batches, problem.probe).stages("pruning sites to all levels"):
        known = levels.get(stage.index) if levels.has(stage.index) else None
        with problem.store.as_before(stage.sites):
            block = _pruned(problem, stage, rows, known)
            stage.outputs = stage.outputs or stage.run()
        if known is None:
            levels.put(stage.index, block)


def _pruned(problem: Problem, stage: Stage, rows: dict[str, Row], known: BlockLevels | None) -> BlockLevels:
    """Solve every site of a resident block, unless that is done, and leave it with its expected weights."""
    block = known or BlockLevels()
    needs = Nothing if known else joined(problem.method.gathers, problem.repair.gathers)
    for site, seen in stage.visit(needs, "layer", together=problem.together):
        shares = rows[site.name].shares
        if known is None:
            weights = problem.store.weights(site)  # the dense ones: no level is made of another
            parts = _scored(problem.method, weights, seen.statistic), problem.repair, problem.pattern
            for level, share in shares.items():
                block.add(site, level, solve(weights, seen.statistic, *parts, share))
        block.place_expected(problem.store, site, {level: 1 - share for level, share in shares.items()})
    return block


def _scored(method: PruningMethod, weights: Weights, statistic: Statistic) -> PruningMethod:
    """The method, which scores a site once for all levels where its scores alone decide."""
    if not method.scores_alone():
        return method
    return _Scored(method.score(weights, statistic.of(method.needs)))


@dataclass(frozen=True)
class _Scored(Method[Nothing]):
    """Scores that are known."""

    known: Tensor

    def score(self, weights: Weights, statistic: Nothing) -> Tensor:
        """Return them."""
        return self.known
