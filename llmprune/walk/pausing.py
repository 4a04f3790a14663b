"""Stand between a module and its forward pass: where it computes, and how to stop before it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmprune.model.site import Site


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: the device of its first weight, or that to which accelerate will bring it."""
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.device.type != "meta":
                return parameter.device
            device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
            return torch.device("cpu" if device is None else device)
    return torch.device("cpu")


@contextmanager
def paused(sites: list[Site], at: Callable[[Site, Tensor], Any]) -> Iterator[None]:
    """Call `at(site, input)` before each site computes, while the context is open."""
    by_layer: dict[nn.Module, list[Site]] = {}
    for site in sites:
        by_layer.setdefault(site.layer, []).append(site)

    def stop(layer: nn.Module, held: list[Site]) -> Callable[..., Tensor]:
        go_on: Callable[..., Tensor] = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            for site in held:
                at(site, site.arriving(*args, **kwargs))
            return go_on(*args, **kwargs)

        return forward

    with replaced(list(by_layer), [stop(layer, held) for layer, held in by_layer.items()]):
        yield


@contextmanager
def replaced(modules: list[nn.Module], forwards: list[Callable[..., Any]]) -> Iterator[None]:
    """Swap the `forward` of every module while the context is open."""
    own: list[Any] = [vars(module).get("forward") for module in modules]  # accelerate's hooks put one here
    for module, forward in zip(modules, forwards, strict=True):
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward
