"""The experts of a block as units that go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from llmprune.methods.base import Weights
from llmprune.model.anatomy import Anatomy
from llmprune.model.resized import COUNTS, blank, filled
from llmprune.model.site import WeightStore
from llmprune.model.unit_site import UnitSite


@dataclass(frozen=True, eq=False)
class WholeExperts(UnitSite):
    """All experts of one block; `layer` is the module that holds them."""

    anatomy: Anatomy = field(kw_only=True)
    groups: int = 1
    """Among which the router chooses first; each loses as many experts."""

    axes: Mapping[str, int] = field(default_factory=dict)
    """Of the tensors of the block that an expert has a share in, by their names in it."""

    shares: int = 0
    """Parameters of one expert, in all these tensors."""

    @property
    def kind(self) -> str:
        """`experts`"""
        return "experts"

    @property
    def cost(self) -> int:
        """Parameters that go with one expert."""
        return self.shares

    def read(self, store: WeightStore) -> Weights:
        """The block's output as a sum of contributions: a one for every expert [1, E]."""
        return Weights(torch.ones(1, self.units), self.index, self.groups)

    def write(self, store: WeightStore, weight: Tensor, bias: Tensor | None) -> None:
        """Let the block compute with the experts that stay."""
        kept = weight[0].nonzero()[:, 0].tolist()
        blocks = self.anatomy.blocks
        blocks[self.block] = self._rebuilt(blocks[self.block], kept)

    def _rebuilt(self, block: nn.Module, kept: list[int]) -> nn.Module:
        """The block with some of its experts; it shares the tensors that stay whole."""
        made = blank(self.anatomy, self.block, COUNTS, len(kept))
        return filled(made, block, lambda name, tensor: self.cut(name, tensor, kept))

    def cut(self, name: str, tensor: Tensor, kept: Iterable[int]) -> Tensor:
        """A tensor of the block with the experts that stay, ascending, and what a router holds beside them.

        Args:
            name: in the block.
            tensor: of the dense block.
            kept: the experts that stay.
        """
        if name not in self.axes:
            return tensor
        beyond = range(self.units, tensor.shape[self.axes[name]])
        rows = torch.tensor([*kept, *beyond], device=tensor.device)
        return tensor.index_select(self.axes[name], rows)
