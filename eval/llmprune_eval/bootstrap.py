"""How sure a mean is: its interval, by drawing what it is a mean of with replacement (Efron, 1979).

Letters used in shapes: N values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 10_000
LEVEL = 0.95
SEED = 0
FEWEST = 6  # values that have an interval


def spread(values: Sequence[float]) -> list[float] | None:
    """The interval of a mean; None of fewer than six values."""
    if len(values) < FEWEST:
        return None
    return interval(means(np.array(values), np.random.default_rng(SEED)))


def interval(drawn: np.ndarray) -> list[float]:
    """The ends of what was drawn, without the share that is left out on both sides."""
    return [float(end) for end in np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The means [DRAWS, ...] of as many values [N, ...] as there are, drawn with replacement."""
    shares = np.full(len(values), 1 / len(values))
    some = 100  # at a time: ten thousand questions would take a GB of counts
    parts = [generator.multinomial(len(values), shares, size=some) @ values for _ in range(DRAWS // some)]
    return np.concatenate(parts) / len(values)


def paired(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    """The means [DRAWS, 2] of two models' values [N] of the same windows or questions, drawn together."""
    return means(np.array([first, second]).T, np.random.default_rng(SEED))
