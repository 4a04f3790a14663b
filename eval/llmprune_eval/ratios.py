"""How many times a figure of one model is another's, from pairs of measurements, and how sure that is.

Whatever else a machine does slows two measurements alike that follow one another, so the ratio of a pair
varies far less than either. The estimate is the median of these ratios, which a few disturbed pairs do not
move. Its interval is that of the sign test: a ratio is below the true median or above it like a coin toss,
whatever their distribution is, as long as pairs do not depend on each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from llmprune.measured import Ratio

ODDS = 20  # one interval in 20 may miss the true ratio: 95 %
FEWEST = 6  # pairs; the smallest and the largest ratio of five enclose the true one in 15 cases of 16 only


def of(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The median of second over first, with its 95 % interval; without one for fewer than six pairs."""
    found = sorted(second / first for first, second in pairs)
    outside = _outside(len(found))
    interval = [found[outside], found[-1 - outside]] if len(found) >= FEWEST else None
    return {"ratio": statistics.median(found), "interval": interval}


def within(found: Ratio, share: float) -> bool:
    """Whether half of the interval is at most this share of the ratio."""
    if found["interval"] is None:
        return False
    low, high = found["interval"]
    return (high - low) / 2 <= share * found["ratio"]


def _outside(count: int) -> int:
    """How many of the sorted ratios can be left out at either end.

    With k left out, the interval misses where at most k of `count` tosses are heads, or at most k tails. The
    sums are whole numbers, exact for any count.
    """
    left_out, heads, seldom = 0, 1, 1  # tosses with just so many heads, and with at most so many
    while True:
        heads = heads * (count - left_out) // (left_out + 1)
        seldom += heads
        if 2 * seldom * ODDS > 2**count:
            return left_out
        left_out += 1
