"""How layer sizes are stored so that a cut model loads again: in config.json, or in a small modelling file.

`uniform`: every block has the same sizes, and the config names them. `per_layer`: every block has its own, in
transformers' `per_layer_config`; its classes do not build such layers yet, so a modelling file comes along.
`padded`: zeros fill every block up to the widest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmprune.errors import RequestError
from llmprune.model import per_layer
from llmprune.model.anatomy import Anatomy
from llmprune.model.shapes import Layout, Lost, Shapes, earlier
from llmprune.model.site import Site
from llmprune.model.unit_site import UnitSite
from llmprune.model.widths import Counts, unit_sites


class UnitShapes(Shapes):
    """The sizes of a model that lost whole units, as they are written.

    Args:
        anatomy: of the dense model, whose sites are units.
        layout: how uneven blocks are written.
        counts: units that stay, by the site's name.
        biased: whether the consumers get a bias.
    """

    def __init__(self, anatomy: Anatomy, layout: Layout, counts: Counts, biased: bool) -> None:
        super().__init__(anatomy)
        self.layout, self.counts, self.biased = layout, counts, biased

    def lost(self, site: Site, weight: Tensor, keep: Tensor) -> Lost:
        """Count whole units, with all parameters that go with them."""
        assert isinstance(site, UnitSite)
        units = [site.units, self.counts[site.name]]
        return {
            "units": units,
            "dropped": (units[0] - units[1]) * site.cost,
            "zeros": self.zeros(site),
            "shape_after": [site.outputs, units[1] * site.inputs // site.units],
        }

    def held(self, site: UnitSite) -> int:
        """How many units of a site the file holds, those filled with zeros included."""
        if not site.producers:
            return site.units
        if self.layout != "padded":
            return self.counts[site.name]
        alike = [s for s in unit_sites(self.anatomy) if s.part == site.part]
        widest, most = max(self.counts[s.name] for s in alike), max(s.units for s in alike)
        return next(n for n in range(widest, most + 1) if n == most or fits(self.anatomy, site, n))

    def zeros(self, site: UnitSite) -> int:
        """How many zeros the file holds in place of a site's units that went."""
        each = site.cost if site.producers else site.outputs * site.inputs // site.units
        return (self.held(site) - self.counts[site.name]) * each

    def config(self, settings: dict[str, Any]) -> dict[str, Any]:
        """config.json of the pruned model, given that of the dense one."""
        settings = without_layers(settings)
        sizes = [self._sizes(block) for block in range(len(self.anatomy.blocks))]
        if any("num_attention_heads" in own for own in sizes):
            settings["head_dim"] = head_dim(self.anatomy)
        for part, flag in self.anatomy.row().biases.items():
            if any(site.part == part for site in self._gaining_bias()):
                settings[flag] = True
        if self.layout != "per_layer":
            return settings | sizes[0]
        settings["per_layer_config"] = {str(block): own for block, own in enumerate(sizes)}
        settings["allow_global_per_layer_attribute_access"] = True
        return settings

    def mark(self) -> dict[str, Any]:
        """The layout, and the layers with a bias that only the modelling file knows."""
        return {"layout": self.layout, "biases": self.own_biases()}

    def own_biases(self) -> list[str]:
        """Layers of a block with a bias that the model's class does not know, an earlier pruning's first."""
        return [*earlier(self.anatomy, "biases"), *self.biases_without_field()]

    def biases_without_field(self) -> list[str]:
        """Layers of a block that get a bias although the config has no field for it."""
        native, prefix = self.anatomy.row().biases, f"{self.anatomy.prefix}.0."
        gaining = [site for site in self._gaining_bias() if site.block == 0 and site.part not in native]
        return [site.name.removeprefix(prefix) for site in gaining]

    def _gaining_bias(self) -> list[UnitSite]:
        """The sites that get a bias and have none."""
        return [site for site in unit_sites(self.anatomy) if self.biased and not site.biased]

    def _sizes(self, block: int) -> dict[str, int]:
        """The fields of the config that pruning changes, for one block."""
        found: dict[str, int] = {}
        for site in unit_sites(self.anatomy):
            if site.block == block and site.producers:
                found |= size_fields(self.anatomy, site, self.held(site))
        return found

    def written(
        self, block: int, keeps: Mapping[str, Tensor], tensors: dict[str, Tensor], key: Callable[[str], str]
    ) -> dict[str, Tensor]:
        """The tensors of a block, cut to its new sizes."""
        for site in unit_sites(self.anatomy):
            if site.block == block:
                self._cut(site, keeps[site.name], tensors, key)
        return tensors

    def _cut(
        self, site: UnitSite, keep: Tensor, tensors: dict[str, Tensor], key: Callable[[str], str]
    ) -> None:
        """Cut the tensors of a block, in place, to what stays of a site.

        Args:
            site: the site.
            keep: bool [I], its inputs that stay.
            tensors: of the block, by their keys in the checkpoint.
            key: the checkpoint's key of a parameter.
        """
        gaining = self.biased and not site.biased
        native = site.part in self.anatomy.row().biases
        like = tensors[key(site.key)]
        for producer in site.producers:
            bias = key(producer.bias_key)
            if gaining and native and bias not in tensors:
                tensors[bias] = like.new_zeros(producer.outputs)
        if gaining:
            tensors.setdefault(key(site.bias_key), like.new_zeros(site.outputs))
        if not site.producers:
            return
        units = keep.reshape(site.units, -1)[:, 0].nonzero()[:, 0].cpu()
        held = self.held(site)
        for producer in site.producers:
            rows = torch.cat([_picked(span.start, span.step, units, held) for span in producer.spans])
            for name, axis in ((producer.key, int(producer.transposed)), (producer.bias_key, 0)):
                where = key(name)
                if where in tensors:
                    tensors[where] = _taken(tensors[where], rows, axis)
        where = key(site.key)
        columns = _picked(0, site.inputs // site.units, units, held)
        tensors[where] = _taken(tensors[where], columns, 0 if site.transposed else 1)

    def apply(self, keeps: Mapping[str, Tensor], mark: dict[str, Any]) -> None:
        """Build every block of a model in memory anew in its own sizes."""
        model, biases = self.anatomy.model, self.own_biases()
        changed = self.config({}) | {"llmprune": mark}
        sizes = changed.pop("per_layer_config", None)
        for field, value in changed.items():
            setattr(model.config, field, value)
        model.config.per_layer_config = sizes
        for index, block in enumerate(self.anatomy.blocks):
            prefix = f"{self.anatomy.prefix}.{index}."
            tensors = self.written(index, keeps, dict(block.state_dict(prefix=prefix)), str)
            shaped = per_layer.shaped(block, model.config, index, biases)
            shaped.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in tensors.items()})
            self.anatomy.blocks[index] = shaped


def size_fields(anatomy: Anatomy, site: UnitSite, units: int) -> dict[str, int]:
    """The fields of a config that say how many units a site has."""
    if site.part == "ffn":
        return {anatomy.row().width: units}
    config = anatomy.config_of(site.block)
    return {
        "num_attention_heads": config.num_attention_heads * units // site.units,
        "num_key_value_heads": units,
    }


def head_dim(anatomy: Anatomy) -> int:
    """Of the dense model; once heads are gone, the config can no longer work it out."""
    site = next(site for site in unit_sites(anatomy) if site.part == "attention")
    return int(site.inputs // anatomy.config_of(site.block).num_attention_heads)


def fits(anatomy: Anatomy, site: UnitSite, units: int) -> bool:
    """Whether the model's config accepts so many units in every block; some want heads to divide a size."""
    if site.part == "ffn":
        return True
    config = anatomy.model.config
    sizes = size_fields(anatomy, site, units) | {"head_dim": head_dim(anatomy)}
    try:
        type(config)(**{**without_layers(config.to_dict()), **sizes})
    except Exception:  # whatever the config's own checks raise
        return False
    return True


def require_possible(anatomy: Anatomy, layout: Layout, *, biased: bool) -> None:
    """Refuse a layout that cannot hold what pruning this family leaves.

    Raises:
        RequestError: it names the way out.
    """
    row = anatomy.row()
    if row.rigid and layout != "padded" and any(s.part == "attention" for s in unit_sites(anatomy)):
        raise RequestError(
            "layout",
            f"heads cannot be cut out of {anatomy.family!r} models ({row.rigid}); prune channels only with "
            "pattern.parts=ffn, or use --layout padded",
        )
    layers = UnitShapes(anatomy, layout, {}, biased).biases_without_field()
    if layers and layout != "per_layer":
        raise RequestError(
            "repair",
            f"it gives {' and '.join(layers)} a bias, which {anatomy.family!r} models have no place for; "
            "use --layout per_layer, or --repair least_squares or none",
        )


def require_holding(anatomy: Anatomy, layout: Layout) -> None:
    """Refuse a layout that cannot hold what an earlier pruning has left.

    Raises:
        RequestError: it names the layouts that can.
    """
    if layout == "uniform" and _differing(anatomy):
        raise RequestError(
            "layout",
            "uniform was asked, and the blocks of this model have different sizes already; use per_layer or "
            "padded",
        )
    biases = earlier(anatomy, "biases")
    if biases and layout != "per_layer":
        raise RequestError(
            "layout",
            f"{layout} was asked, and an earlier pruning gave {' and '.join(biases)} a bias, for which the "
            "classes of transformers have no place; use per_layer",
        )


def _differing(anatomy: Anatomy) -> bool:
    """Whether blocks have different sizes before anything is pruned."""
    sizes = {(site.part, site.units) for site in unit_sites(anatomy)}
    return len(sizes) > len({part for part, _ in sizes})


def without_layers(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config without the sizes of single layers."""
    layered = ("per_layer_config", "allow_global_per_layer_attribute_access")
    return {key: value for key, value in settings.items() if key not in layered}


def _picked(start: int, step: int, units: Tensor, held: int) -> Tensor:
    """The rows of the units that stay, and -1 for every row of zeros that fills up to `held` units."""
    rows = (start + units[:, None] * step + torch.arange(step)).flatten()
    return torch.cat([rows, torch.full(((held - len(units)) * step,), -1)])


def _taken(tensor: Tensor, rows: Tensor, axis: int) -> Tensor:
    rows = rows.to(tensor.device)
    taken = tensor.index_select(axis, rows.clamp_min(0))
    return taken.index_fill_(axis, (rows < 0).nonzero()[:, 0], 0).contiguous()
