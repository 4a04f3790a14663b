"""The sizes of a mixture whose experts lost channels: one width, in the config's own field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmprune.model.anatomy import Anatomy
from llmprune.model.expert_channels import ExpertChannels
from llmprune.model.experts import experts_of, projections
from llmprune.model.resized import WIDTHS, blank, filled, set_size, stated
from llmprune.model.shapes import Removed, Settings, Shapes
from llmprune.model.site import Site
from llmprune.model.unit_site import UnitSite


class NarrowerExperts(Shapes):
    """`uniform`: plain transformers loads it. What the same field sizes, such as a shared expert, follows.

    Args:
        anatomy: of the dense model.
        field: of the config, which holds the width.
        width: channels that every expert keeps.
        counts: units that stay, by the site's name.
    """

    layout = "uniform"

    def __init__(self, anatomy: Anatomy, field: str, width: int, counts: Mapping[str, int]) -> None:
        super().__init__(anatomy)
        self._field, self._width, self._counts = field, width, counts

    def count_removed(self, site: Site, weight: Tensor, keep: Tensor) -> Removed:
        """The parameters of the channels that go."""
        assert isinstance(site, UnitSite)
        units = [site.units, self._counts[site.name]]
        shape = [site.outputs, units[1]]
        return {
            "units": units,
            "dropped": (units[0] - units[1]) * site.cost,
            "zeros": 0,
            "shape_after": shape,
        }

    def cut_tensors(
        self, block: int, keeps: Mapping[str, Tensor], tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The tensors of a block in its new width."""
        experts: dict[str, list[Tensor]] = {}
        for site in self.anatomy.block_sites(block):
            kept = keeps[site.name].nonzero()[:, 0].cpu()
            if isinstance(site, ExpertChannels):
                experts.setdefault(site.path, []).append(kept)
            elif isinstance(site, UnitSite):
                _cut_linear(site, kept, tensors)
        for path, kept_by_expert in experts.items():
            _cut_experts(self.anatomy, path, kept_by_expert, tensors)
        return tensors

    def config(self, settings: Settings) -> Settings:
        """config.json with the new width."""
        return stated(settings, self.anatomy, (self._field,), self._width)

    def apply(self, keeps: Mapping[str, Tensor], mark: Settings) -> None:
        """Rebuild the blocks of a model in memory in their new width."""
        for number, block in enumerate(self.anatomy.blocks):
            prefix = f"{self.anatomy.prefix}.{number}."
            tensors = self.cut_tensors(number, keeps, dict(block.state_dict(prefix=prefix)))
            made = blank(self.anatomy, number, (self._field,), self._width)
            self.anatomy.blocks[number] = filled(made, block, _named(tensors, prefix))
        set_size(self.anatomy, (self._field,), self._width)
        self.anatomy.model.config.llmprune = mark


def _named(tensors: Mapping[str, Tensor], prefix: str) -> Any:
    return lambda name, _: tensors[prefix + name]


def _cut_linear(site: UnitSite, kept: Tensor, tensors: dict[str, Tensor]) -> None:
    """Cut a feed-forward network of linear layers; `tensors` changes in place."""
    for producer in site.producers:
        for name in (producer.key, producer.bias_key):
            if name in tensors:
                tensors[name] = tensors[name][kept]
    tensors[site.key] = tensors[site.key][:, kept]


def _cut_experts(anatomy: Anatomy, path: str, kept: list[Tensor], tensors: dict[str, Tensor]) -> None:
    """Cut the fused parameters of the experts of one block; `tensors` changes in place.

    Args:
        anatomy: of the dense model.
        path: of the module that holds the experts.
        kept: the channels [K] of each expert.
        tensors: of the block, by their names in the model.
    """
    layer: Any = anatomy.module(path)
    first, last = (f"{path}.{leaf}" for leaf in projections(layer))
    sites = [s for s in anatomy.sites if isinstance(s, ExpertChannels) and s.path == path]
    rows = [site.first_rows(channels) for site, channels in zip(sites, kept, strict=True)]
    # Of one expert: outputs of the first matrix, inputs of the last.
    outputs, inputs = (1, 0) if layer.is_transposed else (0, 1)
    tensors[first] = _each(tensors[first], rows, outputs)
    tensors[last] = _each(tensors[last], kept, inputs)
    if f"{first}_bias" in tensors:
        tensors[f"{first}_bias"] = _each(tensors[f"{first}_bias"], rows, 0)


def _each(tensor: Tensor, chosen: list[Tensor], axis: int) -> Tensor:
    """Of every expert's slice of a tensor [E, ...] its own choice along an axis."""
    return torch.stack(
        [one.index_select(axis, own.to(one.device)) for one, own in zip(tensor, chosen, strict=True)]
    )


def width_field(anatomy: Anatomy, block: int) -> str:
    """The field of the config that gives the experts of a block their width."""
    config = anatomy.model.config.get_text_config(decoder=True)
    (_, experts), *_ = experts_of(anatomy.blocks[block])
    width = _width_of(experts)
    for name in (name for name in WIDTHS if getattr(config, name, None) == width):
        (_, changed), *_ = experts_of(blank(anatomy, block, (name,), width // 2))
        if _width_of(changed) == width // 2:
            return name
    raise LookupError(f"no field of the config is the width of the experts of block {block}")


def _width_of(experts: nn.Module) -> int:
    shape = experts.get_parameter("down_proj").shape
    return int(shape[1] if experts.is_transposed else shape[2])
