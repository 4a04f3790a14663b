"""The levels of sparsity that a search chooses from: how much each site loses at each of them.

A site consists of *items*: its units, or the weights of one row. Its levels lie steps of some items apart,
around what it loses at the centre of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmprune.model.site import Site
from llmprune.model.unit_site import UnitSite
from llmprune.model.widths import Budget
from llmprune.walk.levels import Level
from llmprune.walk.problem import Problem

WHOLE = 0.499999  # with a rest of up to this, rounding gives the same count at every level


@dataclass(frozen=True)
class Row:
    """The levels of one site."""

    site: Site
    items: int
    removed: int
    """Items that go at the centre."""

    rest: float
    """What the centre's share has beyond whole items, less than half of one."""

    possible: frozenset[int]
    """Numbers of items that may go."""

    grain: int
    """A step is a multiple of this."""

    step: int
    half: int
    """Levels on either side of the centre."""

    @property
    def shares(self) -> dict[Level, float]:
        """The share to remove at every level that is possible."""
        counts = {level: self.removed + level * self.step for level in range(-self.half, self.half + 1)}
        return {level: self._share(count) for level, count in counts.items() if count in self.possible}

    @property
    def centre(self) -> float:
        """The share to remove at the centre."""
        return self._share(self.removed)

    def _share(self, count: int) -> float:
        return max(0.0, count + self.rest) / self.items

    @property
    def trade(self) -> tuple[int, int, int]:
        """Sites of which this is equal can give a step to one another: it holds as many parameters."""
        return self.site.weights, self.items, self.step


@dataclass(frozen=True)
class Grid:
    """The levels of all sites, in the order of the model."""

    rows: tuple[Row, ...]

    @property
    def groups(self) -> list[list[int]]:
        """The numbers of sites that can trade with one another."""
        found: dict[tuple[int, int, int], list[int]] = {}
        for number, row in enumerate(self.rows):
            found.setdefault(row.trade, []).append(number)
        return list(found.values())

    @property
    def budget(self) -> Budget:
        """The share that every site loses at the centre."""
        return {row.site.name: row.centre for row in self.rows}

    def around(self, chosen: Sequence[Level]) -> Grid:
        """The grid whose centre is these levels, with the same steps."""
        rows = zip(self.rows, chosen, strict=True)
        return Grid(tuple(replace(row, removed=row.removed + level * row.step) for row, level in rows))


def grid_around(problem: Problem, budget: Budget, step: float, levels: int) -> Grid:
    """The grid whose centre is a budget.

    Args:
        problem: what is pruned.
        budget: the share that every site loses at the centre.
        step: between two levels, as a share of the site.
        levels: per site, the centre among them.
    """
    half = levels // 2
    return Grid(tuple(_row(problem, site, budget[site.name], step, half) for site in problem.anatomy.sites))


def _row(problem: Problem, site: Site, share: float, step: float, half: int) -> Row:
    if isinstance(site, UnitSite):
        items = site.units
        possible = frozenset(items - kept for kept in problem.allowed[site.name])
        # What stays is a multiple of the smallest number that may stay, but for the dense site.
        grain = problem.allowed[site.name][0]
    else:
        items, grain = site.inputs, 1
        possible = frozenset(range(items))
    removed = round(share * items)
    rest = max(-WHOLE, min(share * items - removed, WHOLE))
    # A step is at most what sites lose on average, or no level would remove less.
    items_of_step = _step(min(step, problem.sparsity) * items, grain)
    return Row(site, items, removed, rest, possible, grain, items_of_step, half)


def _step(wanted: float, grain: int) -> int:
    return max(1, round(wanted / grain)) * grain
