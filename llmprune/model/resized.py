"""A block of a mixture in other sizes, whatever the family calls its tensors.

A block of the model's own class, built for another count or width, tells which tensors to cut: those of
another shape, along the axis that differs. Routers, correction biases and scales follow without being named.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedConfig

from llmprune.model.anatomy import Anatomy
from llmprune.model.shapes import Settings

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
WIDTHS = ("moe_intermediate_size", "intermediate_size")  # of an expert


def with_size(config: PreTrainedConfig, names: Iterable[str], size: int) -> PreTrainedConfig:
    """A copy of a config with another size, under each of its names that the config has."""
    made = copy.deepcopy(config)  # its dictionary would forget the attention implementation
    for name in names:
        if getattr(config, name, None):
            setattr(made, name, size)
    return made


def blank(anatomy: Anatomy, number: int, names: Iterable[str], size: int) -> nn.Module:
    """A block of a model in another size, without weights."""
    config = with_size(anatomy.block_config(number), names, size)
    build: Any = type(anatomy.blocks[number])
    with init_empty_weights(include_buffers=False):
        made: nn.Module = build(config, layer_idx=number)
    return made


def filled(made: nn.Module, block: nn.Module, cut: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A blank block with the tensors of the dense one; those that stay whole are shared.

    Args:
        made: the blank block.
        block: the dense one.
        cut: returns a tensor, given by its name in the block, in its new size.
    """
    made.load_state_dict(
        {name: cut(name, tensor) for name, tensor in block.state_dict().items()}, assign=True
    )
    device = next(block.parameters()).device
    for module in made.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    return made.train(block.training).requires_grad_(False)


def axes(block: nn.Module, smaller: nn.Module) -> dict[str, int]:
    """The axis along which each tensor of a block shrinks, by its name in the block."""
    after, found = smaller.state_dict(), {}
    for name, tensor in block.state_dict().items():
        differing = [axis for axis, size in enumerate(tensor.shape) if size != after[name].shape[axis]]
        if differing:
            found[name] = differing[0]
    return found


def stated(settings: Settings, anatomy: Anatomy, names: Iterable[str], size: int) -> Settings:
    """config.json with another size, under each name that the file has for it."""
    config = anatomy.model.config
    text = config.get_text_config(decoder=True)
    inner = next((name for name in config.sub_configs if getattr(config, name) is text), None)
    own: Any = settings.get(inner) if inner else settings
    named = [name for name in names if name in (own or {})]
    # A file that leaves the size to the class's default gets the field that the class has.
    sizes = dict.fromkeys(named or [name for name in names if name in vars(text)], size)
    return settings | ({inner: {**(own or {}), **sizes}} if inner else sizes)


def set_size(anatomy: Anatomy, names: Iterable[str], size: int) -> None:
    """Give the config of a model in memory another size."""
    config = anatomy.model.config.get_text_config(decoder=True)
    for name in names:
        if getattr(config, name, None):
            setattr(config, name, size)
