"""The device of a run, the dtype of its computation, and the memory it may use."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from accelerate.utils import convert_file_size_to_int

from llmprune import ranks
from llmprune.errors import RequestError

DEVICES = ("cpu", "cuda")
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
    """Choose device, dtype and memory limit; resolve `auto` on this machine.

    `auto` means the GPU if there is one, with the checkpoint's dtype. On the CPU, it means float32 if the
    model runs on text, since half precision is slow there; for scores alone, the checkpoint's dtype.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, or a torch dtype by name.
        max_memory: the most to use, such as `8GiB`; None for all free memory.
        stored: dtype of the checkpoint.
        text: whether the model runs on text.

    Raises:
        RequestError: the device, dtype or size is not valid.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise RequestError("device", f"{device!r} is not auto, cpu, cuda or cuda:N") from error
    if where.type not in DEVICES:
        raise RequestError("device", f"{device!r} is not auto, cpu, cuda or cuda:N")
    if ranks.count() > 1 and where.type == "cuda":
        where = _own(device)
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            "device", f"{device!r} was asked, and {torch.cuda.device_count()} CUDA devices were found"
        )
    choices = DTYPES | {"auto": torch.float32 if where.type == "cpu" and text else stored}
    if dtype not in choices:
        raise RequestError("dtype", f"{dtype!r} is not one of auto, float32, bfloat16, float16")
    here = psutil.virtual_memory().available // ranks.neighbours()
    free = here if where.type == "cpu" else torch.cuda.mem_get_info(where)[0]
    return Resources(where, choices[dtype], min(free, _bytes(max_memory)) if max_memory else free)


def _own(device: str) -> torch.device:
    """The GPU of this process, one of several.

    Raises:
        RequestError: one GPU was asked for all of them.
    """
    if ":" in device:
        raise RequestError(
            "device", f"{device!r} was asked, and each of {ranks.count()} processes has its own; give cuda"
        )
    return torch.device("cuda", ranks.place())


def _bytes(size: str) -> int:
    try:
        return int(convert_file_size_to_int(size))
    except ValueError as error:
        raise RequestError("max_memory", f"{size!r} is not a size such as 8GiB") from error
