"""The experts of a block as units that go, and the same block with fewer of them.

A block of the model's own class, built for fewer experts, tells which tensors to cut: those of another shape,
along the axis that differs. Routers, correction biases and scales per expert follow without being named.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedConfig

from llmprune.methods.base import Weights
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import WeightStore
from llmprune.model.unit_site import UnitSite

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


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
        made = blank(self.anatomy, self.block, len(kept))
        made.load_state_dict(
            {name: self.cut(name, tensor, kept) for name, tensor in block.state_dict().items()}, assign=True
        )
        device = next(block.parameters()).device
        for module in made.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(device))
        return made.train(block.training).requires_grad_(False)

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


def blank(anatomy: Anatomy, number: int, experts: int) -> nn.Module:
    """A block of a model with as many experts, without weights."""
    config = with_count(anatomy.model.config.get_text_config(decoder=True), experts)
    build: Any = type(anatomy.blocks[number])
    with init_empty_weights(include_buffers=False):
        made: nn.Module = build(config, layer_idx=number)
    return made


def with_count(config: PreTrainedConfig, experts: int) -> PreTrainedConfig:
    """A copy of a config for as many experts in every block, under each name that it has for them."""
    made = copy.deepcopy(config)  # its dictionary would forget the attention implementation
    for name in COUNTS:
        if getattr(config, name, None):
            setattr(made, name, experts)
    return made


def axes(block: nn.Module, smaller: nn.Module) -> dict[str, int]:
    """The axis along which each tensor of a block shrinks, by its name in the block."""
    after, found = smaller.state_dict(), {}
    for name, tensor in block.state_dict().items():
        differing = [axis for axis, size in enumerate(tensor.shape) if size != after[name].shape[axis]]
        if differing:
            found[name] = differing[0]
    return found
