"""Search among the levels of all sites for those whose model is closest to the dense one.

Letters used in shapes: B sequences of one batch, T tokens.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from llmprune.tensors.knapsack import balanced
from llmprune.walk.grid import Grid
from llmprune.walk.levels import Level
from llmprune.walk.population import Population

MOVES = 3  # most steps that one mutation moves
GROWTH = 4  # times as many tokens, for a quarter of the candidates, from one stage to the next
Chosen = tuple[Level, ...]  # the level of every site of the model, in order


class Fittest(NamedTuple):
    """What a stage of the search ended with."""

    levels: Chosen
    kl: float
    """Mean KL(dense || pruned) in nats on the windows that it was judged by."""


class Evolution:
    """Mutations keep the budget of the grid's centre exactly; equal seeds give equal results.

    Args:
        population: measures candidates.
        grid: the levels that there are.
        batches: token ids to judge by, each [B, T].
        tokens: that the mutations of a generation are measured on first.
        seed: of mutations and windows.
    """

    def __init__(
        self, population: Population, grid: Grid, batches: list[Tensor], tokens: int, seed: str
    ) -> None:
        self._population, self._grid, self._tokens = population, grid, tokens
        self._windows, self._batch = torch.cat(batches), len(batches[0])
        self._lots = random.Random(seed)

    @property
    def centre(self) -> Chosen:
        """The levels that the grid is built around."""
        return (0,) * len(self._grid.rows)

    def start(self) -> Fittest:
        """The levels whose costs, each on its own in the dense model, have the least sum.

        The centre where that is better: costs do not add up where sites depend on one another.
        """
        sites = range(len(self._grid.rows))
        alone = [(site, level) for site in sites for level in self._grid.rows[site].shares]
        trials = [tuple(level if n == site else None for n in sites) for site, level in alone]
        found = self._population.cost(trials, self._some(self._tokens), "pruning sites one by one")
        costs: list[dict[Level, float]] = [{} for _ in sites]
        for (site, level), cost in zip(alone, found, strict=True):
            costs[site][level] = cost
        chosen = list(self.centre)
        for group in self._grid.groups:
            for site, level in zip(group, balanced([costs[n] for n in group]), strict=True):
                chosen[site] = level
        return self._best([self.centre, tuple(chosen)], list(self._windows.split(self._batch)))

    def next(self, parent: Chosen, offspring: int) -> Fittest:
        """The best of a parent and its mutations, of which ever fewer are measured on ever more tokens."""
        left = [mutated(parent, self._grid, self._lots) for _ in range(offspring)]
        tokens = self._tokens
        while len(left) > 1:
            costs = self._population.cost(left, self._some(tokens), "measuring mutations")
            order = sorted(range(len(left)), key=lambda number: costs[number])
            left = [left[number] for number in order[: max(1, len(left) // GROWTH)]]
            tokens *= GROWTH
        return self._best([parent, *left], self._some(tokens))

    def _best(self, candidates: list[Chosen], batches: list[Tensor]) -> Fittest:
        """The candidate of the least cost; of equals, the first."""
        costs = self._population.cost(candidates, batches, "measuring the best")
        best = min(range(len(candidates)), key=lambda number: costs[number])
        return Fittest(candidates[best], costs[best])

    def _some(self, tokens: int) -> list[Tensor]:
        """Windows with at least so many tokens, drawn without replacement; all if there are no more."""
        count = min(len(self._windows), -(-tokens // self._windows.shape[1]))
        drawn = sorted(self._lots.sample(range(len(self._windows)), count))
        return list(self._windows[drawn].split(self._batch))


def mutated(parent: Chosen, grid: Grid, lots: random.Random) -> Chosen:
    """Move one to three steps, each from a site to another for which a step has as many parameters."""
    child = list(parent)
    for _ in range(min(lots.randint(1, MOVES), lots.randint(1, MOVES))):
        group = lots.choices(grid.groups, [len(group) for group in grid.groups])[0]
        less = [site for site in group if child[site] - 1 in grid.rows[site].shares]
        more = [site for site in group if child[site] + 1 in grid.rows[site].shares]
        pairs = [(giver, taker) for giver in more for taker in less if giver != taker]
        if pairs:
            giver, taker = lots.choice(pairs)
            child[giver] += 1
            child[taker] -= 1
    return tuple(child)
