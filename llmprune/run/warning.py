"""Warn of what few models survive: budgets that take far more of some blocks, and starved experts."""

from __future__ import annotations

from collections.abc import Iterable

from llmprune.model.widths import Budget
from llmprune.progress import say
from llmprune.report import SiteRecord
from llmprune.run.job import Job

MUCH = 2.5  # times the share that was asked


def overpruned(todo: Job, budget: Budget) -> list[str]:
    """A sentence about the blocks that lose much more than was asked; none where whole blocks are to go.

    What cannot go does not count: where a block has one group of heads, its channels alone are looked at.
    """
    recipe, anatomy = todo.recipe, todo.model.anatomy
    if recipe.sites.shares not in ("weights", "units"):
        return []
    shares: dict[int, float] = {}
    for block in range(len(anatomy.blocks)):
        sites = [s for s in anatomy.block_sites(block) if len(todo.allowed.get(s.name, (0, 1))) > 1]
        removed = sum(budget[site.name] * site.weights for site in sites)
        shares[block] = removed / max(1, sum(site.weights for site in sites))
    worst = max(shares, key=shares.__getitem__)
    if shares[worst] <= MUCH * recipe.sparsity:
        return []
    more = sum(share > MUCH * recipe.sparsity for share in shares.values()) - 1
    others = f", and {more} more lose over {MUCH:g} times as much as was asked" if more else ""
    return [
        f"block {worst} loses {shares[worst]:.0%} of what can go where {recipe.sparsity:.0%} was asked"
        f"{others}; if the quality is poor, try --allocation best or uniform"
    ]


def starved(sites: Iterable[SiteRecord]) -> list[str]:
    """A sentence about experts that too few calibration tokens reached."""
    notes = [record.notes for record in sites if "topped_up" in record.notes]
    few = [note["tokens"] for note in notes if note["topped_up"]]
    if not few:
        return []
    return [
        f"too few tokens reached {len(few)} of {len(notes)} matrices of experts, the fewest {min(few):.0f}; "
        "these saw other tokens of their block too; raise --samples"
    ]


def show(warnings: list[str]) -> None:
    """Show warnings on the terminal."""
    for sentence in warnings:
        say(f"warning: {sentence}")
