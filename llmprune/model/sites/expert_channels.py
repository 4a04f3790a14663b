"""Channels inside experts, and of the shared experts that one field of the config makes as wide."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.expert_channels import ExpertChannels as Site
from llmprune.model.experts import chosen, count, experts_of, is_mixture
from llmprune.model.narrower_experts import NarrowerExperts, width_field
from llmprune.model.resized import axes, blank
from llmprune.model.shapes import Layout
from llmprune.model.sites.base import Sites, SizeRequest
from llmprune.model.unit_site import Producer, Span, UnitSite, sizes
from llmprune.model.widths import Allowed, Budget, unit_sites
from llmprune.patterns.expert_channels import ExpertChannels


@dataclass(frozen=True, eq=False)
class _SharedExpert(UnitSite):
    """A feed-forward network of linear layers whose width follows that of the experts."""

    alike: ClassVar = True


@dataclass(frozen=True)
class ChannelsOfExperts(Sites):
    """One site for each expert, and for each shared one."""

    pattern: ExpertChannels

    changes_sizes: ClassVar = True
    shares: ClassVar = "units"

    def find(self, anatomy: Anatomy) -> Iterator[UnitSite]:
        """Find the experts, then the shared ones, of each block.

        Raises:
            RequestError: there are none whose width a field of the config gives.
        """
        blocks = [*enumerate(anatomy.blocks)]
        mixed = [number for number, block in blocks if is_mixture(block)]
        if not mixed:
            raise RequestError(
                "pattern",
                f"this {anatomy.family!r} model has no experts that llmprune knows how to cut; use units",
            )
        field, index = width_field(anatomy, mixed[0]), 0
        for number, block in blocks:
            for site in (*_experts(anatomy, number, block), *_shared(anatomy, number, block, field)):
                yield dataclasses.replace(site, index=index)
                index += 1

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """One width for all experts, in the config's own field."""
        return ("uniform",)

    def allowed(self, anatomy: Anatomy, asked: SizeRequest) -> Allowed:
        """Multiples of the pattern's, and as many times that in a shared expert as it is wider.

        Raises:
            RequestError: experts are narrower than that, or the repair gives them a bias.
        """
        if asked.adds_bias:
            raise RequestError(
                "repair", "it gives experts a bias, which they have no place for; use --repair least_squares"
            )
        sites = unit_sites(anatomy)
        width, step = next(s.units for s in sites if isinstance(s, Site)), self.pattern.multiple
        if step > width:
            raise RequestError(
                "pattern.multiple", f"{step} was asked, and an expert has {width} channels; ask for a divisor"
            )
        kept = sorted({*range(step, width + 1, step), width})
        most = 1 - kept[0] / width
        if asked.sparsity > most:
            raise RequestError(
                "sparsity",
                f"{asked.sparsity:g} was asked, and at most {most:.4g} can go: every expert keeps {kept[0]} "
                "channels (`pattern.multiple`); ask for less",
            )
        return {site.name: [n * site.units // width for n in kept] for site in sites}

    def shapes(self, anatomy: Anatomy, asked: SizeRequest, budget: Budget) -> NarrowerExperts:
        """The same width for all experts."""
        sites = unit_sites(anatomy)
        counts = {site.name: site.units - round(budget[site.name] * site.units) for site in sites}
        first = next(site for site in sites if isinstance(site, Site))
        return NarrowerExperts(anatomy, width_field(anatomy, first.block), counts[first.name], counts)


def _experts(anatomy: Anatomy, number: int, block: nn.Module) -> Iterator[Site]:
    """One site for each expert of a block."""
    for name, layer in experts_of(block):
        outputs, inputs = layer.get_parameter("down_proj").shape[1:]
        if layer.is_transposed:
            outputs, inputs = inputs, outputs
        path = f"{anatomy.prefix}.{number}.{name}"
        for expert in range(count(layer)):
            yield Site(
                name=f"{path}.{expert}.down_proj",
                index=0,
                block=number,
                path=path,
                module=anatomy.module,
                inputs=inputs,
                outputs=outputs,
                transposed=bool(layer.is_transposed),
                leaf="down_proj",
                share=min(1.0, chosen(anatomy.block_config(number)) / count(layer)),
                expert=expert,
                units=inputs,
            )


def _shared(anatomy: Anatomy, number: int, block: nn.Module, field: str) -> Iterator[_SharedExpert]:
    """One site for each linear layer of a block whose inputs follow the width of the experts."""
    width = getattr(anatomy.model.config.get_text_config(decoder=True), field)
    cut = axes(block, blank(anatomy, number, (field,), width // 2))
    prefix = f"{anatomy.prefix}.{number}."
    for name, layer in block.named_modules():
        if not isinstance(layer, nn.Linear) or cut.get(f"{name}.weight") != 1:
            continue
        yield _SharedExpert(
            name=prefix + name,
            index=0,
            block=number,
            path=prefix + name,
            module=anatomy.module,
            inputs=layer.in_features,
            outputs=layer.out_features,
            units=layer.in_features,
            producers=tuple(_producers(anatomy, prefix, block, name.rpartition(".")[0], cut)),
            biased=layer.bias is not None,
        )


def _producers(
    anatomy: Anatomy, prefix: str, block: nn.Module, around: str, cut: dict[str, int]
) -> Iterator[Producer]:
    """The layers of one feed-forward network whose outputs follow the width."""
    for name, layer in block.named_modules():
        beside = name.rpartition(".")[0] == around
        if isinstance(layer, nn.Linear) and beside and cut.get(f"{name}.weight") == 0:
            biased, spans = layer.bias is not None, (Span(0, 1),)
            yield Producer(prefix + name, anatomy.module, *sizes(layer), biased, spans)
