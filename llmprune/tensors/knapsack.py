"""Choose one option for every item, so that their steps add up to zero, at the least total cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def balanced(costs: Sequence[dict[int, float]]) -> list[int]:
    """Return the step chosen for each item, by dynamic programming over the sum of steps so far.

    Args:
        costs: for every item, what each possible step (an integer) costs; of equal sums, the first wins.

    Raises:
        ValueError: no choice adds up to zero.
    """
    best: dict[int, float] = {0: 0.0}
    taken: list[dict[int, int]] = []
    for options in costs:
        reached: dict[int, float] = {}
        chosen: dict[int, int] = {}
        for (before, spent), (step, cost) in itertools.product(best.items(), options.items()):
            total = before + step
            if spent + cost < reached.get(total, math.inf):
                reached[total], chosen[total] = spent + cost, step
        best = reached
        taken.append(chosen)
    if 0 not in best:
        raise ValueError("no choice adds up to zero")
    steps, total = [], 0
    for chosen in reversed(taken):
        steps.append(chosen[total])
        total -= steps[-1]
    return steps[::-1]
