"""Plots described as data, once, whoever draws them: `svg.py` for the page, `png.py` for a folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_POINTS = 300  # of a curve; a longer one is averaged over neighbours
MARKED = 16  # markers on a line at most


@dataclass(frozen=True)
class Axis:
    """What is measured along one side."""

    label: str
    percent: bool = False
    whole: bool = False
    """Whether only whole numbers mean anything."""

    log: bool = False

    def show(self, value: float) -> str:
        """A value as it is read off."""
        shown = 100 * value if self.percent else value
        return f"{shown:.4g}{' %' if self.percent else ''}"


@dataclass(frozen=True)
class Series:
    """Points that belong together, with a line through them or none."""

    label: str
    points: tuple[tuple[float, float], ...]
    line: bool = True
    marks: tuple[str, ...] = ()
    """What is written at each point."""

    hollow: bool = False
    ends: tuple[tuple[float, float], ...] = ()
    """The interval of every point, or of none."""

    @property
    def heights(self) -> list[float]:
        """All that the axis has to reach."""
        return [y for _, y in self.points] + [end for ends in self.ends for end in ends]

    @property
    def spacing(self) -> int:
        """Every so many points get a marker."""
        return -(-len(self.points) // MARKED) if self.line else 1


@dataclass(frozen=True)
class Chart:
    """Series over two axes."""

    name: str
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    note: str = ""
    """What the page says around it, and a file that stands alone must say too."""


@dataclass(frozen=True)
class Grid:
    """A value for each row and column; None where there is none."""

    name: str
    title: str
    x: Axis
    value: Axis
    columns: tuple[int, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]

    @property
    def top(self) -> float:
        """The largest value, which gets the full colour."""
        return max((v for _, row in self.rows for v in row if v is not None), default=0.0) or 1.0


Plot = Chart | Grid


def curve(label: str, values: Sequence[float], first: int = 1) -> Series:
    """Values over their numbers; many are averaged over neighbours, so that all of them count."""
    width = -(-len(values) // MOST_POINTS) or 1
    points = []
    for start in range(0, len(values), width):
        part = [value for value in values[start : start + width] if math.isfinite(value)]
        if part:
            points.append((first + start + (width - 1) / 2, sum(part) / len(part)))
    return Series(label, tuple(points))


def front(costs: Sequence[tuple[float, float]]) -> list[bool]:
    """Which pairs no other beats: none is at most as large in both numbers and smaller in one."""

    def beaten(one: tuple[float, float]) -> bool:
        return any(other[0] <= one[0] and other[1] <= one[1] and other != one for other in costs)

    return [not beaten(one) for one in costs]


def span(values: Iterable[float], axis: Axis) -> tuple[float, float]:
    """From where to where an axis goes: past its first and last tick, or a margin beyond the values."""
    low, high = min(values := list(values)), max(values)
    if axis.log:
        return low / 1.15, high * 1.15
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    if axis.whole:
        room = min(room, 0.5)
    return (0.0 if 0 <= low < room * 8 and not axis.whole else low - room), high + room


def ticks(low: float, high: float, axis: Axis, most: int = 6) -> list[float]:
    """Round numbers from low to high, at most so many."""
    if axis.log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
            if 2 <= len(found) <= most:
                return found
    rough = (high - low) / most
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(s * base for s in (1, 2, 2.5, 5, 10, 20) if s * base >= rough)
    if axis.whole:
        step = max(1, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]
