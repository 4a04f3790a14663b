"""What the machine can do: which kernels may run, and if none, why."""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch

OLDEST = (8, 0)
"""The first NVIDIA compute capability with sparse tensor cores, and with bfloat16."""

OLDEST_TRITON = (3, 6)


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def triton_version() -> str | None:
    """Of the Triton that is installed, under whatever name its wheel goes, if one is."""
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return str(triton.__version__)


capability = functools.cache(torch.cuda.get_device_capability)
"""Of a GPU; every launch asks."""


def on_device(x: torch.Tensor) -> AbstractContextManager[object]:
    """Launch where a tensor is: Triton goes by the current device, not by its arguments'."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


def why_not(device: torch.device) -> str | None:
    """Why no kernel can run on a device, or None if the kernels can."""
    version = triton_version()
    if version is None:
        return "Triton is not installed (pip install triton)"
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
        return f"the kernels need Triton 3.6 or newer, and {version} is installed"
    if device.type != "cuda":
        return f"the kernels need a GPU, and the model is on {device.type}"
    if torch.version.hip is None and capability(device) < OLDEST:
        found = ".".join(map(str, capability(device)))
        return f"the kernels need compute capability 8.0 (Ampere) or newer, and {device} has {found}"
    return None


def is_nvidia(device: torch.device) -> bool:
    """Whether there is byte permutation, and where kernels can run at all, sparse tensor cores."""
    return device.type == "cuda" and torch.version.hip is None
