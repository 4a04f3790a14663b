"""Where a run computes, in which dtype, and how much memory it may take there."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from accelerate.utils import convert_file_size_to_int

from llmprune.errors import RequestError

DEVICES = ("cpu", "cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Resources:
    """A device, the dtype of the computation, and the bytes that are free there."""

    device: torch.device
    dtype: torch.dtype
    available: int

    @property
    def name(self) -> str:
        """The hardware that the last bits of a result depend on."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"

    @property
    def dtype_name(self) -> str:
        """`float32`, `bfloat16` or `float16`."""
        return str(self.dtype).removeprefix("torch.")


def resources(
    device: str, dtype: str, max_memory: str | None, stored: torch.dtype, *, text: bool
) -> Resources:
    """What `auto` stands for on this machine.

    `auto` computes on the GPU if there is one; in the checkpoint's dtype there, and in float32 on the CPU,
    where half precision is slow. Without calibration nothing is computed but scores, and the checkpoint's
    dtype will do.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, or a torch dtype by name.
        max_memory: a size such as `8GiB` that is not to be passed; None for all that is free.
        stored: dtype of the checkpoint.
        text: whether the model runs on text.

    Raises:
        RequestError: there is no such device, dtype or size.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise RequestError("device", f"{device!r} is not auto, cpu, cuda or cuda:N") from error
    if where.type not in DEVICES:
        raise RequestError("device", f"{device!r} is not auto, cpu, cuda or cuda:N")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            "device", f"{device!r} was asked, and {torch.cuda.device_count()} CUDA devices were found"
        )
    choices = DTYPES | {"auto": torch.float32 if where.type == "cpu" and text else stored}
    if dtype not in choices:
        raise RequestError("dtype", f"{dtype!r} is not one of auto, float32, bfloat16, float16")
    free = psutil.virtual_memory().available if where.type == "cpu" else torch.cuda.mem_get_info(where)[0]
    return Resources(where, choices[dtype], min(free, _bytes(max_memory)) if max_memory else free)


def _bytes(size: str) -> int:
    try:
        return int(convert_file_size_to_int(size))
    except ValueError as error:
        raise RequestError("max_memory", f"{size!r} is not a size such as 8GiB") from error
