"""Linear layers and experts, where single weights are removed. Every decoder has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from llmprune.errors import RequestError
from llmprune.model import experts
from llmprune.model.anatomy import Anatomy
from llmprune.model.expert_site import ExpertSite
from llmprune.model.experts import chosen, count, holds_experts, is_mixture, projections, routes
from llmprune.model.site import Site
from llmprune.model.sites.base import Sites
from llmprune.model.unit_site import sizes
from llmprune.patterns.base import Pattern
from llmprune.patterns.unstructured import Unstructured

COVERAGE = 0.95  # share of the block weights that must belong to sites


@dataclass(frozen=True)
class LinearLayers(Sites):
    """Every linear layer of every block, and every matrix of its experts; routers stay dense."""

    pattern: Pattern = field(default_factory=Unstructured)

    def find(self, anatomy: Anatomy) -> Iterator[Site]:
        """Find linear layers, GPT-2's Conv1D and experts, in the order of modules."""
        index = 0
        for number, block in enumerate(anatomy.blocks):
            for name, layer in prunable(block):
                path = f"{anatomy.prefix}.{number}.{name}"
                for site in _sites(anatomy, number, path, layer, index):
                    yield site
                    index += 1

    def require_coverage(self, anatomy: Anatomy) -> None:
        """Refuse a model if less than 95% of its block weights belong to sites.

        Raises:
            RequestError: less does; the message names the largest parameters outside the sites.
        """
        if anatomy.coverage >= COVERAGE:
            return
        reached = {site.key for site in anatomy.sites}
        missed: dict[str, int] = {}
        for number, block in enumerate(anatomy.blocks):
            for name, parameter in block.named_parameters():
                if parameter.ndim > 1 and f"{anatomy.prefix}.{number}.{name}" not in reached:
                    missed[name] = missed.get(name, 0) + parameter.numel()
        largest = sorted(missed, key=lambda name: -missed[name])[:3]
        raise RequestError(
            "model",
            f"only {anatomy.coverage:.0%} of the block weights of this {anatomy.family!r} model are linear "
            f"layers that llmprune can prune; it cannot prune {', '.join(largest)}",
        )


def prunable(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What may lose weights, in the order of modules: linear layers and experts, but no routers."""
    mixture = is_mixture(block)
    for name, module in block.named_modules():
        if holds_experts(module) or (_is_linear(module) and not (mixture and routes(name))):
            yield name, module


def _sites(anatomy: Anatomy, block: int, path: str, layer: nn.Module, index: int) -> Iterator[Site]:
    """The sites of one layer: one, or two for each expert."""
    if not holds_experts(layer):
        outputs, inputs, transposed = sizes(layer)
        yield Site(path, index, block, path, anatomy.module, inputs, outputs, transposed)
        return
    share = min(1.0, chosen(anatomy.block_config(block)) / count(layer))
    for expert in range(count(layer)):
        for leaf in projections(layer):
            outputs, inputs = layer.get_parameter(leaf).shape[1:]
            if layer.is_transposed:
                outputs, inputs = inputs, outputs
            name = f"{path}.{expert}.{leaf}"
            yield ExpertSite(
                name,
                index,
                block,
                path,
                anatomy.module,
                inputs,
                outputs,
                bool(layer.is_transposed),
                leaf,
                expert=expert,
                share=share,
            )
            index += 1


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def layers_of(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers of a block, with their names in it."""
    return ((n, layer) for n, layer in block.named_modules() if _is_linear(layer))


def outputs(block: nn.Module, config: PreTrainedConfig) -> int:
    """Outputs of all layers of a block together, per token; of experts, of those that compute one."""
    routed = sum(experts.outputs(layer, config) for _, layer in experts.experts_of(block))
    return routed + sum(sizes(layer)[0] for _, layer in layers_of(block))
