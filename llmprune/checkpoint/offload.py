"""accelerate's hooks, which load the offloaded weights of a module."""

from __future__ import annotations

from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import nn


def align_hooks(module: nn.Module) -> list[AlignDevicesHook]:
    """accelerate's hooks on a module that load its weights."""

    def flat(hook: object) -> list[AlignDevicesHook]:
        if isinstance(hook, SequentialHook):
            return [found for part in hook.hooks for found in flat(part)]
        return [hook] if isinstance(hook, AlignDevicesHook) else []

    return flat(getattr(module, "_hf_hook", None))
