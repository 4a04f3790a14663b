"""What computes here: the CPU, and the accelerators of the kind that torch finds (CUDA, ROCm, XPU or MPS)."""

from __future__ import annotations

from contextlib import suppress

import psutil
import torch

from llmprune.errors import RequestError


def kind() -> str:
    """What torch calls the accelerators of this machine, `cuda` for ROCm too; `cpu` where there are none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else "cpu"


def found() -> list[torch.device]:
    """All that can compute, the CPU first."""
    numbers = range(torch.accelerator.device_count())
    return [torch.device("cpu"), *(torch.device(kind(), number) for number in numbers)]


def named(asked: str | int, field: str) -> torch.device:
    """The device that a user names: `auto`, `cpu`, `cuda`, `cuda:1`, or the number of an accelerator.

    Raises:
        RequestError: it is not there; `field` names the option that asked for it.
    """
    if asked == "auto":
        return torch.device(kind())
    here = [str(device) for device in found()]
    name = f"{kind()}:{asked}" if isinstance(asked, int) else asked
    if name not in (*here, kind()):
        raise RequestError(
            field, f"{asked!r} was asked, and torch finds {', '.join(here)} here; give one of these, or auto"
        )
    return torch.device(name)


def numbered(device: torch.device) -> str:
    """The same device with its number, as a user may name it."""
    return device.type if device.type == "cpu" else f"{device.type}:{device.index or 0}"


def name(device: torch.device) -> str:
    """The hardware, as far as the rounding of a result depends on it."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    named = getattr(torch.get_device_module(device), "get_device_name", None)  # MPS has none
    return str(named(device)) if named else device.type


def free(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type != "cpu":
        with suppress(RuntimeError):  # MPS computes in the host's memory, and tells of none of its own
            return torch.accelerator.get_memory_info(device)[0]
    return psutil.virtual_memory().available


def peak(device: torch.device) -> int:
    """The most bytes that tensors took on an accelerator since `forget_peak`; 0 for the CPU."""
    return 0 if device.type == "cpu" else torch.accelerator.max_memory_allocated(device)


def forget_peak(device: torch.device) -> None:
    """Count the peak from here on."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)


def settle(device: torch.device) -> None:
    """Wait until a device has computed what it was given: calls to an accelerator return before."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 itself, rather than by way of float32."""
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    able = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return bool(able and able(including_emulation=False))
