"""Ordinary recipes that land on a target: tokens, blocks, and channels or experts, alone and in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmprune.errors import RequestError
from llmprune.planning.prices import Prices
from llmprune.planning.target import Target
from llmprune.plugins import Options
from llmprune.recipe import Recipe

ROWS = 64  # that go at a time
WIDTH: dict[str, Any] = {
    "method": "cfsp",
    "pattern": {"name": "units", "parts": "ffn"},
    "repair": "affine",
}
EXPERTS: dict[str, Any] = {"method": "reap"}
DEPTH: dict[str, Any] = {"method": "shortgpt", "pattern": "blocks", "repair": "span"}
# The shares of what has to go that tokens, blocks, and channels or experts give.
MIXES = {
    "width": (0.0, 0.0, 1.0),
    "depth": (0.0, 1.0, 0.0),
    "vocabulary": (1.0, 0.0, 0.0),
    "depth and width": (0.0, 0.5, 0.5),
    "vocabulary and width": (0.5, 0.0, 0.5),
    "vocabulary and depth": (0.5, 0.5, 0.0),
}


@dataclass(frozen=True)
class Candidate:
    """A way to reach a target."""

    name: str
    rows: int
    """Of the vocabulary, that go."""

    blocks: int
    """That go."""

    inner: float
    """The share of the channels or experts of the other blocks that goes."""

    expected: float
    """What the result takes: bytes, or seconds for a token."""

    def recipe(self, prices: Prices, text: Options, *, counts: bool) -> Recipe:
        """The recipe, of one step or of several.

        Args:
            prices: of the model.
            text: the recipe's `calibration`.
            counts: whether tokens are chosen by what that text uses.
        """
        steps: list[dict[str, Any]] = []
        if self.rows:
            table = {"pattern": {"name": "vocabulary", "keep": prices.rows - self.rows}}
            steps.append(table | ({} if counts else {"calibration": {"dataset": "none"}}))
        if self.blocks:
            steps.append(DEPTH | {"sparsity": self.blocks / prices.blocks})
        if self.inner:
            steps.append((EXPERTS if prices.mixture else WIDTH) | {"sparsity": self.inner})
        if len(steps) == 1:
            return Recipe.parse({"calibration": dict(text)} | steps[0])
        return Recipe.parse({"calibration": dict(text), "steps": steps})


def candidates(prices: Prices, target: Target) -> list[Candidate]:
    """All mixes that land near a target.

    Args:
        prices: of the parts of the model: bytes, or seconds for a token.
        target: what is to be reached.

    Raises:
        RequestError: none does; the sentence names the nearest that one reaches.
    """
    goal = target.goal(prices.whole)
    found = [mixed for name, mix in MIXES.items() for mixed in _mixed(prices, goal, name, mix)]
    landing = [one for one in found if target.misses(one.expected, goal) <= target.near]
    if landing:
        return landing
    nearest = min((one.expected for one in found), key=lambda at: abs(at - goal), default=prices.whole)
    raise RequestError(
        "target",
        f"{target.said} was asked, and the nearest that this model reaches is "
        f"{target.words(nearest, prices.whole)}; ask for that",
    )


def corrected(prices: Prices, target: Target, name: str, gained: float) -> Candidate | None:
    """A mix solved once more, after it was measured; None where the model has too little of what it removes.

    Args:
        prices: of the parts of the model.
        target: what is to be reached.
        name: of the mix.
        gained: what its result saved over what it was to save.
    """
    goal = prices.whole - (prices.whole - target.goal(prices.whole)) / gained
    mixed = _mixed(prices, goal, name, MIXES[name]) if 0 < goal < prices.whole else iter(())
    return next((one for one in mixed if target.misses(one.expected, goal) <= target.near), None)


def _mixed(prices: Prices, goal: float, name: str, mix: tuple[float, float, float]) -> Iterator[Candidate]:
    """The mix of a name as near to the goal as it comes; none where the model lacks what it removes."""
    away = prices.whole - goal
    tokens, blocks, inner = mix
    rows = _rows(prices, tokens * away)
    left = away - rows * prices.row
    gone = _blocks(prices, blocks * away if inner else left) if blocks else 0
    stay = prices.blocks - gone
    share = _share(prices, left - gone * prices.block, stay) if inner else 0.0
    if tokens and not inner:  # a row is far less than a block, and makes up for what blocks miss
        rows = _rows(prices, away - gone * prices.block)
    taken = rows * prices.row + gone * prices.block + share * prices.inner * stay
    if [bool(took) for took in (rows, gone, share)] == [bool(part) for part in mix]:
        yield Candidate(name, rows, gone, share, prices.whole - taken)


def _rows(prices: Prices, wanted: float) -> int:
    """Rows that take about as much, of which at most three quarters go; a multiple of 64 stays."""
    if not prices.row:
        return 0
    most = prices.rows * 3 // 4
    stay = prices.rows - min(round(max(wanted, 0.0) / prices.row), most)
    return max(0, prices.rows - -(-stay // ROWS) * ROWS)


def _blocks(prices: Prices, wanted: float) -> int:
    """Blocks that take about as much."""
    return min(round(max(wanted, 0.0) / prices.block), prices.removable) if prices.block else 0


def _share(prices: Prices, wanted: float, blocks: int) -> float:
    """The share of channels or experts that takes about as much, so that one step of them stays."""
    if not prices.inner or wanted <= 0:
        return 0.0
    share = min(wanted / (prices.inner * blocks), 1 - prices.step / prices.units)
    return round(share * prices.units) / prices.units if prices.mixture else share
