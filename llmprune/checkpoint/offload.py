"""accelerate's hooks, which load the offloaded weights of a module, and its table of such weights."""

from __future__ import annotations

from typing import TypedDict

from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import nn

from llmprune.model.anatomy import Anatomy


class Offloaded(TypedDict):
    """Where accelerate finds one offloaded weight."""

    safetensors_file: str
    weight_name: str
    dtype: str


def align_hooks(module: nn.Module) -> list[AlignDevicesHook]:
    """accelerate's hooks on a module that load its weights."""

    def flat(hook: object) -> list[AlignDevicesHook]:
        if isinstance(hook, SequentialHook):
            return [found for part in hook.hooks for found in flat(part)]
        return [hook] if isinstance(hook, AlignDevicesHook) else []

    return flat(getattr(module, "_hf_hook", None))


def offload_index(anatomy: Anatomy) -> dict[str, Offloaded]:
    """accelerate's table of the offloaded weights, by parameter name."""
    for module in anatomy.blocks.modules():
        for hook in align_hooks(module):
            if hook.offload:
                index: dict[str, Offloaded] = hook.weights_map.dataset.index
                return index
    raise AssertionError("the blocks of a streamed model are offloaded")
