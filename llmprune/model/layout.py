"""Store the sizes of layers that lost units, so that the model loads: in config.json, or a modelling file.

`uniform`: all blocks have the same sizes, which the config names. `per_layer`: each block has its own, in
transformers' `per_layer_config`; its classes do not build such layers yet, so a modelling file is added.
`padded`: zeros fill up each block to the size of the widest one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmprune.errors import RequestError
from llmprune.model import decoder_config, per_layer, rebuilt
from llmprune.model.anatomy import Anatomy
from llmprune.model.shapes import Layout, Removed, Settings, Shapes, from_earlier_pruning
from llmprune.model.site import Site
from llmprune.model.unit_config import fits, head_dim, size_fields, without_layers
from llmprune.model.unit_site import Span, UnitSite
from llmprune.model.widths import Counts, unit_sites


class UnitShapes(Shapes):
    """The sizes of a model after whole units were removed, as they are stored.

    Args:
        anatomy: of the dense model; its sites are UnitSites.
        layout: how blocks of different sizes are stored.
        counts: units that stay, by the site's name.
        adds_bias: whether the consumers get a bias.
    """

    def __init__(self, anatomy: Anatomy, layout: Layout, counts: Counts, adds_bias: bool) -> None:
        super().__init__(anatomy)
        self.layout, self.counts, self.adds_bias = layout, counts, adds_bias

    def count_removed(self, site: Site, weight: Tensor, keep: Tensor) -> Removed:
        """Count the removed units and all parameters that belong to them."""
        assert isinstance(site, UnitSite)
        units = [site.units, self.counts[site.name]]
        return {
            "units": units,
            "dropped": (units[0] - units[1]) * site.cost,
            "zeros": self.zeros(site),
            "shape_after": [site.outputs, units[1] * site.inputs // site.units],
        }

    def stored_units(self, site: UnitSite) -> int:
        """How many units of a site the file stores; units filled with zeros count too."""
        if not site.producers:  # heads cannot be removed, so they are stored as zeros
            return site.units
        if self.layout != "padded":
            return self.counts[site.name]
        alike = [s for s in unit_sites(self.anatomy) if s.part == site.part]
        widest, most = max(self.counts[s.name] for s in alike), max(s.units for s in alike)
        # Some configs accept only certain numbers of heads: take the next larger one that is accepted.
        return next(n for n in range(widest, most + 1) if n == most or fits(self.anatomy, site, n))

    def zeros(self, site: UnitSite) -> int:
        """How many zeros the file stores in place of a site's removed units."""
        each = site.cost if site.producers else site.outputs * site.inputs // site.units
        return (self.stored_units(site) - self.counts[site.name]) * each

    def config(self, settings: Settings) -> Settings:
        """config.json of the pruned model, given that of the dense one."""
        return decoder_config.changed(self.anatomy.model, settings, self._own_config)

    def _own_config(self, settings: Settings) -> Settings:
        """The decoder's own settings."""
        settings = without_layers(settings)
        sizes = [self._sizes(block) for block in range(len(self.anatomy.blocks))]
        if any("num_attention_heads" in own for own in sizes):
            # The default of `head_dim` is hidden_size / heads, which is wrong once heads are removed.
            settings["head_dim"] = head_dim(self.anatomy)
        for part, flag in self.anatomy.family_row().biases.items():
            if any(site.part == part for site in self.gaining_bias()):
                settings[flag] = True
        if self.layout != "per_layer":
            return settings | {field: size for own in sizes for field, size in own.items()}
        for block, own in enumerate(sizes):
            if skipped := self.anatomy.skipped(block):
                own["skip"] = list(skipped)
        settings["per_layer_config"] = {str(block): own for block, own in enumerate(sizes)}
        settings[rebuilt.GLOBAL] = True
        return settings

    def mark(self) -> Settings:
        """The layout, and the layers whose bias only the modelling file builds."""
        return {"layout": self.layout, "biases": self.own_biases()}

    def own_biases(self) -> list[str]:
        """Layers of a block whose bias the model's class does not build; earlier prunings' first."""
        return [*from_earlier_pruning(self.anatomy, "biases"), *self.biases_without_field()]

    def biases_without_field(self) -> list[str]:
        """Layers of a block that get a bias although the config has no field for it."""
        native = self.anatomy.family_row().biases
        gaining = [site for site in self.gaining_bias() if site.part not in native]
        prefix = self.anatomy.prefix
        return list(dict.fromkeys(site.name.removeprefix(f"{prefix}.{site.block}.") for site in gaining))

    def gaining_bias(self) -> list[UnitSite]:
        """The sites that have no bias and get one."""
        return [site for site in unit_sites(self.anatomy) if self.adds_bias and not site.biased]

    def _sizes(self, block: int) -> Settings:
        """The config fields that pruning changes, for one block."""
        found: Settings = {}
        for site in unit_sites(self.anatomy):
            if site.block == block and site.producers:
                found |= size_fields(self.anatomy, site, self.stored_units(site))
        return found

    def cut_tensors(
        self, block: int, keeps: Mapping[str, Tensor], tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Cut the tensors of a block to its new sizes."""
        for site in unit_sites(self.anatomy):
            if site.block == block:
                self._cut(site, keeps[site.name], tensors)
        return tensors

    def _cut(self, site: UnitSite, keep: Tensor, tensors: dict[str, Tensor]) -> None:
        """Cut the tensors of one site. `tensors` changes in place.

        Args:
            site: the site.
            keep: bool [I], True for the inputs that stay.
            tensors: of the block, by their names in the model.
        """
        gets_bias = self.adds_bias and not site.biased
        has_field = site.part in self.anatomy.family_row().biases
        like = tensors[site.key]
        for producer in site.producers:
            bias = producer.bias_key
            # The config field gives every layer of the part a bias, the producers too: theirs is zero.
            if gets_bias and has_field and bias not in tensors:
                tensors[bias] = like.new_zeros(producer.outputs)
        if gets_bias:
            tensors.setdefault(site.bias_key, like.new_zeros(site.outputs))
        if not site.producers:
            return
        units = keep.reshape(site.units, -1)[:, 0].nonzero()[:, 0].cpu()
        stored = self.stored_units(site)
        for producer in site.producers:
            rows = torch.cat([_rows_of(span, units, stored) for span in producer.spans])
            for name, axis in ((producer.key, int(producer.transposed)), (producer.bias_key, 0)):
                if name in tensors:
                    tensors[name] = _select(tensors[name], rows, axis)
        columns = _rows_of(Span(0, site.inputs // site.units), units, stored)
        tensors[site.key] = _select(tensors[site.key], columns, 0 if site.transposed else 1)

    def apply(self, keeps: Mapping[str, Tensor], mark: Settings) -> None:
        """Rebuild every block of a model in memory in its own sizes."""
        model, biases = self.anatomy.model, self.own_biases()
        config, own = decoder_config.stored_in(model), self._own_config({})
        config.per_layer_config = None  # clears the sizes of an earlier pruning
        for field, value in own.items():
            setattr(config, field, value)
        model.config.llmprune = mark
        for index, block in enumerate(self.anatomy.blocks):
            prefix = f"{self.anatomy.prefix}.{index}."
            tensors = self.cut_tensors(index, keeps, dict(block.state_dict(prefix=prefix)))
            shaped = per_layer.shaped(block, config, index, biases)
            shaped.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in tensors.items()})
            self.anatomy.blocks[index] = shaped


def require_possible(anatomy: Anatomy, layout: Layout, *, adds_bias: bool) -> None:
    """Refuse a layout that cannot store the result of pruning this family.

    Raises:
        RequestError: the layout cannot; the message names one that can.
    """
    if layout == "per_layer":
        rebuilt.require(anatomy, "use --layout uniform or padded")
    row = anatomy.family_row()
    cuts_heads = any(site.part == "attention" for site in unit_sites(anatomy))
    if row.heads_fixed_because and layout != "padded" and cuts_heads:
        raise RequestError(
            "layout",
            f"heads cannot be cut out of {anatomy.family!r} models ({row.heads_fixed_because}); prune "
            "channels only with pattern.parts=ffn, or use --layout padded",
        )
    shapes = UnitShapes(anatomy, layout, {}, adds_bias)
    # With `per_layer`, engines take the modelling file, which reads it.
    if row.unread_in and layout != "per_layer" and any(s.part == "attention" for s in shapes.gaining_bias()):
        raise RequestError(
            "repair",
            f"it gives the attention a bias, which {row.unread_in} drops without a word from {layout} "
            f"{anatomy.family!r} models; use --layout per_layer, or --repair least_squares or none",
        )
    layers = shapes.biases_without_field()
    if layers and layout != "per_layer":
        raise RequestError(
            "repair",
            f"it gives {' and '.join(layers)} a bias, for which {anatomy.family!r} models have no field; "
            "use --layout per_layer, or --repair least_squares or none",
        )


def require_earlier_fits(anatomy: Anatomy, layout: Layout) -> None:
    """Refuse a layout that cannot store the sizes and biases of an earlier pruning.

    Raises:
        RequestError: the layout cannot; the message names those that can.
    """
    if layout == "uniform" and _blocks_differ(anatomy):
        raise RequestError(
            "layout",
            "uniform was asked, and the blocks of this model have different sizes already; use per_layer or "
            "padded",
        )
    skipping = next((block for block in range(len(anatomy.blocks)) if anatomy.skipped(block)), None)
    if skipping is not None and layout != "per_layer":
        parts = " and ".join(anatomy.skipped(skipping))
        raise RequestError(
            "layout",
            f"{layout} was asked, and an earlier pruning removed {parts} of block {skipping}; use per_layer",
        )
    biases = from_earlier_pruning(anatomy, "biases")
    if biases and layout != "per_layer":
        raise RequestError(
            "layout",
            f"{layout} was asked, and an earlier pruning gave {' and '.join(biases)} a bias, for which the "
            "classes of transformers have no field; use per_layer",
        )


def _blocks_differ(anatomy: Anatomy) -> bool:
    """Whether blocks have different sizes already."""
    # As many (part, units) pairs as parts means that each part has one size in all blocks.
    sizes = {(site.part, site.units) for site in unit_sites(anatomy)}
    return len(sizes) > len({part for part, _ in sizes})


def _rows_of(span: Span, units: Tensor, stored: int) -> Tensor:
    """Row numbers of the units that stay, then one -1 for each row of zeros, up to `stored` units."""
    return torch.cat([span.rows(units), torch.full(((stored - len(units)) * span.step,), -1)])


def _select(tensor: Tensor, rows: Tensor, axis: int) -> Tensor:
    """The rows of a tensor, or slices along `axis`, with zeros for each -1."""
    rows = rows.to(tensor.device)
    # index_select takes no -1: read row 0 there, and overwrite it with zeros.
    taken = tensor.index_select(axis, rows.clamp_min(0))
    return taken.index_fill_(axis, (rows < 0).nonzero()[:, 0], 0).contiguous()
