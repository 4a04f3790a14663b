"""The device of a run, the dtype of its computation, and the memory it may use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate.utils import convert_file_size_to_int

from llmprune import ranks
from llmprune.checkpoint import devices
from llmprune.errors import RequestError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Resources:
    """A device, the dtype of the computation, and the bytes available on the device."""

    device: torch.device
    dtype: torch.dtype
    available: int

    @property
    def name(self) -> str:
        """The hardware, as far as the rounding of a result depends on it."""
        return devices.name(self.device)

    @property
    def dtype_name(self) -> str:
        """`float32`, `bfloat16` or `float16`."""
        return str(self.dtype).removeprefix("torch.")


def resources(
    device: str, dtype: str, max_memory: str | None, stored: torch.dtype, *, text: bool
) -> Resources:
    """Choose device, dtype and memory limit; resolve `auto` on this machine.

    `auto` means the accelerator if there is one, with the checkpoint's dtype. On the CPU, it means float32 if
    the model runs on text, since half precision is slow there; for scores alone, the checkpoint's dtype.

    Args:
        device: as for `devices.named`.
        dtype: `auto`, or a torch dtype by name.
        max_memory: the most to use, such as `8GiB`; None for all free memory.
        stored: dtype of the checkpoint.
        text: whether the model runs on text.

    Raises:
        RequestError: the device, dtype or size is not valid.
    """
    where = devices.named(device, "device")
    if ranks.count() > 1 and where.type != "cpu":
        where = _own(where)
    choices = DTYPES | {"auto": torch.float32 if where.type == "cpu" and text else stored}
    if dtype not in choices:
        raise RequestError("dtype", f"{dtype!r} is not one of auto, float32, bfloat16, float16")
    free = devices.free(where) // (ranks.neighbours() if where.type == "cpu" else 1)
    return Resources(where, choices[dtype], min(free, _bytes(max_memory)) if max_memory else free)


def _own(asked: torch.device) -> torch.device:
    """The accelerator of this process, one of several.

    Raises:
        RequestError: one was asked for all of them, or there are too few.
    """
    if asked.index is not None:
        raise RequestError(
            "device",
            f"'{asked}' was asked, and each of {ranks.count()} processes has its own; give {asked.type}",
        )
    return devices.named(ranks.place(), "device")


def _bytes(size: str) -> int:
    try:
        return int(convert_file_size_to_int(size))
    except ValueError as error:
        raise RequestError("max_memory", f"{size!r} is not a size such as 8GiB") from error
