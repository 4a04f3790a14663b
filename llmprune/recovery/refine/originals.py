"""The original values of a pruned model's weights, and what is refused where they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator

from llmprune import report
from llmprune.checkpoint.opened import Opened
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.depth import dense_indices
from llmprune.model.site import Site
from llmprune.patterns import base as patterns
from llmprune.patterns.base import Pattern
from llmprune.report import Report


def report_of(pruned: Opened) -> Report:
    """The report of a pruned checkpoint."""
    assert pruned.source is not None
    found = report.read(pruned.source.folder)
    assert found is not None
    return found


def pattern_of(pruned: Opened) -> Pattern:
    """The pattern of a pruned checkpoint, as its report has it."""
    return patterns.build(report_of(pruned).recipe["pattern"], {})


def twins(pruned: Anatomy, dense: Anatomy) -> Iterator[tuple[Site, Site]]:
    """Every layer of the pruned model with that of the dense model."""
    blocks = dense_indices(dense)
    for number, index in enumerate(dense_indices(pruned)):
        # By name: all experts of a block are of one kind.
        originals = {_in_block(site): site for site in dense.block_sites(blocks.index(index))}
        yield from ((site, originals[_in_block(site)]) for site in pruned.block_sites(number))


def _in_block(site: Site) -> str:
    """The name of a site without that of its block."""
    return site.name.split(f".{site.block}.", 1)[1]


def require_mask(pruned: Opened, dense: Opened, does: str) -> None:
    """Refuse a checkpoint that lost anything but single weights.

    Args:
        pruned: the checkpoint.
        dense: the one that it was pruned from.
        does: what is done to single weights, and by what.

    Raises:
        RequestError: it says what was removed.
    """
    pattern, instead = pattern_of(pruned), "use reconstruct or lora"
    if pattern.prunes != "linear":
        raise RequestError(
            "recovery", f"{does} single weights, and {pruned.name} was pruned by {pattern}; {instead}"
        )
    for site, twin in twins(pruned.anatomy, dense.anatomy):
        ours, theirs = (site.outputs, site.inputs), (twin.outputs, twin.inputs)
        if ours != theirs:
            raise RequestError(
                "recovery",
                f"{does} single weights, and {site.name} of {pruned.name} was cut from "
                f"{theirs[0]} x {theirs[1]} to {ours[0]} x {ours[1]}; {instead}",
            )


def require_unmoved(pruned: Opened, dense: Opened) -> None:
    """Refuse a checkpoint whose kept weights are not the dense model's.

    Raises:
        RequestError: it names the first layer where they differ.
    """
    for site, twin in twins(pruned.anatomy, dense.anatomy):
        with pruned.store.resident(site.block), dense.store.resident(twin.block):
            ours = pruned.store.weight(site)
            theirs = dense.store.weight(twin).to(ours.device, ours.dtype)
        if ((ours != 0) & (ours != theirs)).any():
            raise RequestError(
                "recovery.original",
                f"refine brings weights back with their original values, and the kept ones of {site.name} "
                f"are not those of {dense.name}; prune with a method that keeps them, such as wanda, or set "
                "original: pruned, which takes the kept weights as they are",
            )
