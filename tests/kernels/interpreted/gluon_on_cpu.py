"""Run a Gluon kernel on the CPU, with torch in the place of `gl` and the emulated instruction for its PTX.

Triton's interpreter knows no Gluon. Layouts say which thread holds an element, not what it is, so they can be
left out; every index, mask and sum of the kernel is its own. Reaching outside of a tensor is an error.
"""

from __future__ import annotations

import itertools
import re
import types
from dataclasses import dataclass
from typing import Any

import torch
from llmprune_kernels.sp24.emulate import mma_sp
from torch import Tensor


@dataclass(frozen=True)
class Pointer:
    """A place in a tensor, or many."""

    storage: Tensor
    offsets: Any = 0

    @property
    def dtype(self) -> Any:
        return types.SimpleNamespace(element_ty=self.storage.dtype)

    def __add__(self, offsets: Any) -> Pointer:
        return Pointer(self.storage, self.offsets + offsets)

    def reached(self, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Offsets, 0 where the mask forbids, and the mask."""
        allowed = (
            torch.ones_like(self.offsets, dtype=torch.bool)
            if mask is None
            else mask.expand(self.offsets.shape)
        )
        offsets = torch.where(allowed, self.offsets, 0)
        assert int(offsets.min()) >= 0 and int(offsets.max()) < self.storage.numel(), "outside of the tensor"
        return offsets, allowed


class Gl:
    """What our kernels use of `triton.experimental.gluon.language`."""

    int64, float32 = torch.int64, torch.float32
    static_range = range
    program: tuple[int, ...] = (0, 0, 0)

    def __init__(self) -> None:
        self.BlockedLayout = self.SliceLayout = lambda *_: None

    def program_id(self, axis: int) -> int:
        return self.program[axis]

    def arange(self, start: int, end: int, layout: None) -> Tensor:
        return torch.arange(start, end)

    def zeros(self, shape: list[int], dtype: torch.dtype, layout: None) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def load(
        self, at: Pointer, mask: Tensor | None = None, other: int | None = None, eviction_policy: str = ""
    ) -> Tensor:
        offsets, allowed = at.reached(mask)
        found = at.storage.reshape(-1)[offsets]
        return found if other is None else torch.where(allowed, found, other)

    def store(self, at: Pointer, value: Tensor, mask: Tensor) -> None:
        offsets, allowed = at.reached(mask)
        at.storage.view(-1)[offsets[allowed]] = value.expand(offsets.shape)[allowed]

    def sum(self, x: Tensor, axis: int) -> Tensor:
        return x.sum(axis)

    def reshape(self, x: Tensor, shape: list[int]) -> Tensor:
        return x.reshape(shape)

    def permute(self, x: Tensor, order: list[int]) -> Tensor:
        return x.permute(order)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., 0], x[..., 1]

    def expand_dims(self, x: Tensor, axis: int) -> Tensor:
        return x.unsqueeze(axis)

    def convert_layout(self, x: Tensor, layout: None) -> Tensor:
        return x

    def exp(self, x: Tensor) -> Tensor:
        return x.exp()

    def inline_asm_elementwise(
        self, asm: str, constraints: str, args: list[Tensor], dtype: torch.dtype, is_pure: bool, pack: int
    ) -> Tensor:
        """The instruction for every warp and every pair of tiles: the last axis is a lane's registers."""
        a, b, c, meta = torch.broadcast_tensors(*args)
        kind = torch.bfloat16 if ".bf16." in asm else torch.float16
        selector = int(re.search(r"0x([01]);$", asm)[1])  # type: ignore[index]
        out = torch.empty_like(c)
        for warp, i, j in itertools.product(range(0, len(c), 32), range(c.shape[1]), range(c.shape[2])):
            lanes = slice(warp, warp + 32), i, j
            left, right = (x[lanes].to(torch.int32).contiguous().view(kind) for x in (a, b))
            out[lanes] = mma_sp(left, right, c[lanes], meta[lanes][:, 0], selector)
        return out


def run(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Every program of a grid, one after the other."""
    gl = Gl()
    names = dict(kernel.fn.__globals__) | {"gl": gl}
    for name, value in kernel.fn.__globals__.items():
        if hasattr(value, "fn") and value is not kernel:
            names[name] = types.FunctionType(value.fn.__code__, names)
    plain = types.FunctionType(kernel.fn.__code__, names)
    pointers = [Pointer(arg) if isinstance(arg, Tensor) else arg for arg in args]
    constants.pop("num_warps", None)
    for program in itertools.product(*map(range, grid)):
        gl.program = program
        plain(*pointers, **constants)
