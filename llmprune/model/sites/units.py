"""Whole units: channels of the feed-forward network, and groups of heads, of the families with a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmprune.model import layout, widths
from llmprune.model.anatomy import Anatomy
from llmprune.model.families import Coupling, Part
from llmprune.model.shapes import Layout
from llmprune.model.sites.base import Asked, Budget, Sites
from llmprune.model.sites.linear import sizes
from llmprune.model.unit_site import Producer, Span, UnitSite
from llmprune.model.widths import Allowed
from llmprune.patterns.units import Units


@dataclass(frozen=True)
class WholeUnits(Sites):
    """One site for each part of each block that the pattern names."""

    pattern: Units

    whole: ClassVar = True
    shares: ClassVar = "units"
    sample: ClassVar = 64  # the samples of all blocks may be held at a time

    def find(self, anatomy: Anatomy) -> Iterator[UnitSite]:
        """Attention before feed-forward network, block by block."""
        parts = self.pattern.parts
        grouped = anatomy.row().attention.producers  # heads that stay where they are need no groups
        for number in range(len(anatomy.blocks)):
            config = anatomy.config_of(number)
            heads = config.num_attention_heads
            groups = (grouped and getattr(config, "num_key_value_heads", None)) or heads
            if parts != "ffn":
                yield _site(anatomy, number, "attention", groups, heads // groups)
            if parts != "attention":
                yield _site(anatomy, number, "ffn", 0, 1)

    def default_layout(self, *, uneven: bool) -> Layout:
        """The one that plain transformers loads, where blocks stay alike."""
        return "per_layer" if uneven else "uniform"

    def allowed(self, anatomy: Anatomy, asked: Asked) -> Allowed:
        """Multiples of channels and whole groups of heads that the layout and the model's config can have."""
        assert asked.layout is not None
        layout.require_possible(anatomy, asked.layout, biased=asked.biased)
        if asked.sparsity:
            layout.require_holding(anatomy, asked.layout)
        alike = asked.layout == "uniform"
        return widths.allowed(
            anatomy, self.pattern.multiple, lambda site, n: not alike or layout.fits(anatomy, site, n)
        )

    def shapes(self, anatomy: Anatomy, asked: Asked, budget: Budget) -> layout.UnitShapes:
        """Smaller layers, written in the layout that was asked for."""
        assert asked.layout is not None
        found = widths.unit_sites(anatomy)
        counts = {site.name: site.units - round(budget[site.name] * site.units) for site in found}
        return layout.UnitShapes(anatomy, asked.layout, counts, asked.biased)


def _site(anatomy: Anatomy, number: int, part: Part, units: int, share: int) -> UnitSite:
    """The units of one part of one block.

    Args:
        anatomy: of the model.
        number: of the block.
        part: attention or feed-forward network.
        units: how many there are; 0 for one to each input of the consumer.
        share: query heads that share a key and value head.
    """
    row: Coupling = getattr(anatomy.row(), part)
    block, prefix = anatomy.blocks[number], f"{anatomy.prefix}.{number}."
    layer = block.get_submodule(row.consumer)
    outputs, inputs, transposed = sizes(layer)
    units = units or inputs
    step = inputs // units
    producers = []
    for name, contents in row.producers.items():
        steps = [step // share if letter in "kv" else step for letter in contents.split()]
        starts = [units * sum(steps[:i]) for i in range(len(steps))]
        source = block.get_submodule(name)
        biased = getattr(source, "bias", None) is not None
        spans = tuple(map(Span, starts, steps))
        producers.append(Producer(prefix + name, anatomy.module, *sizes(source), biased, spans))
    return UnitSite(
        name=prefix + row.consumer,
        index=2 * number + (part == "ffn"),
        block=number,
        path=prefix + row.consumer,
        module=anatomy.module,
        inputs=inputs,
        outputs=outputs,
        transposed=transposed,
        part=part,
        units=units,
        producers=tuple(producers),
        biased=getattr(layer, "bias", None) is not None,
    )
