"""Linear layers, where single weights are removed. Every decoder has them, so any family can be pruned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site
from llmprune.model.sites.base import Sites
from llmprune.patterns.base import Pattern
from llmprune.patterns.unstructured import Unstructured

COVERAGE = 0.95  # share of the block weights that must belong to sites


@dataclass(frozen=True)
class LinearLayers(Sites):
    """Every linear layer of every block."""

    pattern: Pattern = field(default_factory=Unstructured)

    def find(self, anatomy: Anatomy) -> Iterator[Site]:
        """Find linear layers and GPT-2's Conv1D, in the order of modules."""
        index = 0
        for number, block in enumerate(anatomy.blocks):
            for name, layer in layers_of(block):
                outputs, inputs, transposed = sizes(layer)
                path = f"{anatomy.prefix}.{number}.{name}"
                yield Site(path, index, number, path, anatomy.module, inputs, outputs, transposed)
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
            f"layers that llmprune can prune; it cannot prune {', '.join(largest)} (fused experts are not "
            "supported yet)",
        )


def layers_of(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers of a block, with their names in it."""
    return ((n, layer) for n, layer in block.named_modules() if isinstance(layer, nn.Linear | Conv1D))


def sizes(layer: nn.Module) -> tuple[int, int, bool]:
    """Outputs and inputs of a linear layer, and whether it stores its weight as [inputs, outputs]."""
    assert isinstance(layer.weight, Tensor)
    first, second = layer.weight.shape
    return (second, first, True) if isinstance(layer, Conv1D) else (first, second, False)
