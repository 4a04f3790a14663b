"""Intercept the forward pass of modules, and find the device on which they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llmprune.model.expert_site import ExpertSite
from llmprune.model.site import Site
from llmprune.model.whole_experts import WholeExperts
from llmprune.walk.expert_loop import ExpertLoop


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module computes: that of its first weight, or the one accelerate moves it to."""
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.device.type != "meta":
                return parameter.device
            # An offloaded weight is on the meta device; only accelerate's hook knows where it will compute.
            device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
    return torch.device("cpu")


@contextmanager
def paused(sites: list[Site], at: Callable[[Site, Tensor], object]) -> Iterator[None]:
    """Call `at(site, input)` before each site computes, while the context is open."""
    by_layer: dict[nn.Module, list[Site]] = {}  # several sites can be parts of one layer
    for site in sites:
        by_layer.setdefault(site.layer, []).append(site)

    def pausing(layer: nn.Module, its_sites: list[Site]) -> Callable[..., Tensor]:
        if any(isinstance(site, ExpertSite | WholeExperts) for site in its_sites):
            return ExpertLoop(layer, its_sites, at)
        own_forward: Callable[..., Tensor] = layer.forward

        def forward(*args: object, **kwargs: object) -> Tensor:
            for site in its_sites:
                at(site, site.input_from_call(*args, **kwargs))
            return own_forward(*args, **kwargs)

        return forward

    with replaced(list(by_layer), [pausing(layer, its_sites) for layer, its_sites in by_layer.items()]):
        yield


@contextmanager
def replaced(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., object]]) -> Iterator[None]:
    """Swap the `forward` of every module while the context is open."""
    # accelerate's hooks put a `forward` into the instance, which must come back; others have none there.
    own = [vars(module).get("forward") for module in modules]
    for module, forward in zip(modules, forwards, strict=True):
        module.forward = forward
    try:
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            if before is None:
                del module.forward
            else:
                module.forward = before
