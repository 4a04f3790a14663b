"""What the parts of a model take: bytes, counted from its shapes, or seconds for one token, measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmprune_eval.blocks import Latencies

from llmprune.checkpoint import reader
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.experts import is_mixture
from llmprune.model.sites.base import sites_of
from llmprune.model.sites.block import removable
from llmprune.patterns.blocks import Blocks
from llmprune.patterns.experts import Experts
from llmprune.patterns.units import Units


@dataclass(frozen=True)
class Prices:
    """Of one model. Blocks that differ in size count as their mean."""

    whole: float
    """All of it."""

    block: float
    inner: float
    """All that can go inside one block: its channels, or its experts; 0 where neither is known."""

    row: float
    """One row of the vocabulary, of all its tables."""

    tables: int
    """That have a row for each token."""

    blocks: int
    removable: int
    rows: int
    units: int
    """Channels of a block, or its experts."""

    step: int
    """Channels that go at a time; experts go one by one."""

    mixture: bool


def bytes_of(source: Source) -> Prices:
    """What the parts of a checkpoint take on disk, counted from its shapes.

    Args:
        source: the checkpoint; no weight is read.
    """
    pattern = Blocks()
    anatomy = reader.blueprint(source, sites_of(pattern))
    able, depth = removable(anatomy, pattern), len(anatomy.blocks)
    width = source.size[0] / sum(stored.numel for stored in source.tensors.values())
    tables = [one for one in source.tensors.values() if one.shape[:1] == (anatomy.vocabulary,)]
    sizes = [anatomy.block_sites(block)[0].weights for block in sorted(able)]
    found = Prices(
        whole=source.size[0],
        block=width * sum(sizes) / max(len(sizes), 1),
        inner=0.0,
        row=sum(one.bytes for one in tables) / anatomy.vocabulary,
        tables=max(1, len(tables)),
        blocks=depth,
        removable=min(len(able), depth - 1),
        rows=anatomy.vocabulary,
        units=0,
        step=1,
        mixture=any(map(is_mixture, anatomy.blocks)),
    )
    return _with_inner(source, found, width)


def in_seconds(prices: Prices, taken: Latencies) -> Prices:
    """The same parts in seconds for one new token, as they were measured."""
    token = taken.token_s
    return replace(
        prices,
        whole=token,
        block=token * taken.block,
        inner=token * taken.channels,  # 0 in a mixture, where a token passes as many experts as before
        row=token * taken.row,
    )


def _with_inner(source: Source, prices: Prices, width: float) -> Prices:
    """The same with what can go inside blocks, where the family's units are known."""
    pattern = Experts() if prices.mixture else Units(parts="ffn")
    if source.packed and not prices.mixture:  # cut channels are written unpacked, which takes more
        return prices
    try:
        anatomy: Anatomy = reader.blueprint(source, sites_of(pattern))
    except RequestError:
        return prices
    if not anatomy.sites:
        return prices
    weights = sum(site.weights for site in anatomy.sites) / prices.blocks
    units = min(getattr(site, "units", site.inputs) for site in anatomy.sites)
    step = getattr(pattern, "multiple", 1)
    return replace(prices, inner=width * weights, units=units, step=step)
