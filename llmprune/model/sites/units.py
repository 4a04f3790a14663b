"""Whole units: channels of the feed-forward network and groups of heads. The family's row names them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmprune.model import layout, unit_config, widths
from llmprune.model.anatomy import Anatomy
from llmprune.model.families import Part
from llmprune.model.shapes import Layout
from llmprune.model.sites.base import Sites, SizeRequest
from llmprune.model.unit_site import Producer, UnitSite, sizes, spans_of
from llmprune.model.widths import Allowed, Budget
from llmprune.patterns.units import Units


@dataclass(frozen=True)
class WholeUnits(Sites):
    """One site for each part of each block; the pattern names the parts."""

    pattern: Units

    changes_sizes: ClassVar = True
    shares: ClassVar = "units"

    def find(self, anatomy: Anatomy) -> Iterator[UnitSite]:
        """Find the attention, then the feed-forward network, of each block."""
        parts = self.pattern.parts
        for number in range(len(anatomy.blocks)):
            if parts != "ffn" and anatomy.has(number, "attention"):
                yield _site(anatomy, number, "attention", *_groups(anatomy, number))
            if parts != "attention" and anatomy.has(number, "ffn"):
                yield _site(anatomy, number, "ffn", 0, 1)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """All of them."""
        return "uniform", "per_layer", "padded"

    def default_layout(self, *, uneven: bool) -> Layout:
        """`uniform` if all blocks keep equal sizes, since plain transformers loads it."""
        return "per_layer" if uneven else "uniform"

    def allowed(self, anatomy: Anatomy, asked: SizeRequest) -> Allowed:
        """The numbers of channels and groups of heads that the layout and the model's config accept."""
        assert asked.layout is not None
        layout.require_possible(anatomy, asked.layout, adds_bias=asked.adds_bias)
        if asked.sparsity:
            layout.require_earlier_fits(anatomy, asked.layout)
        alike = asked.layout == "uniform"
        return widths.allowed(
            anatomy,
            self.pattern.multiple,
            lambda site, n: not alike or unit_config.fits(anatomy, site, n),
            self.pattern.kv_multiple,
        )

    def shapes(self, anatomy: Anatomy, asked: SizeRequest, budget: Budget) -> layout.UnitShapes:
        """The sizes of the smaller layers, stored in the layout of the request."""
        assert asked.layout is not None
        found = widths.unit_sites(anatomy)
        counts = {site.name: site.units - round(budget[site.name] * site.units) for site in found}
        return layout.UnitShapes(anatomy, asked.layout, counts, asked.adds_bias)


def _groups(anatomy: Anatomy, number: int) -> tuple[int, int]:
    """How many groups of heads a block has, and the query heads of each."""
    config = anatomy.block_config(number)
    heads: int = config.num_attention_heads
    # Without producers, heads cannot be removed: they need no groups, and each is a unit of its own.
    grouped = anatomy.coupling("attention").producers
    groups = (grouped and getattr(config, "num_key_value_heads", None)) or heads
    return groups, heads // groups


def _site(anatomy: Anatomy, number: int, part: Part, units: int, share: int) -> UnitSite:
    """The site of one part of one block.

    Args:
        anatomy: of the model.
        number: of the block.
        part: attention or feed-forward network.
        units: how many there are; 0 if each input of the consumer is one.
        share: query heads for each key and value head.
    """
    row = anatomy.coupling(part)
    block, prefix = anatomy.blocks[number], f"{anatomy.prefix}.{number}."
    layer = block.get_submodule(row.consumer)
    outputs, inputs, transposed = sizes(layer)
    units = units or inputs
    step = inputs // units
    producers = []
    for name, contents in row.producers.items():
        source = block.get_submodule(name)
        biased = getattr(source, "bias", None) is not None
        spans = spans_of(contents, units, step, share)
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
