"""2:4 sparsity as sparse tensor cores read it: every lane's registers of a tile lie side by side.

A tile is 16 rows by 32 columns. `mma.sp.m16n8k32` gives lane 4g + t of a warp four registers of the left
matrix (PTX ISA, "Matrix fragments for sparse mma.m16n8k32"): register r holds both kept values of row
g + 8 (r & 1), group t + 4 (r >> 1). So one 128-bit load a lane, 512 consecutive bytes a warp, is a whole
tile, and nothing has to be decoded. Metadata of two neighbouring tiles share a word a lane: lane 4g + q
holds 16 columns, the q-th 16 of 64, of row g in its low half and of row g + 8 in its high half; selector 0
of the instruction takes those of q < 2, selector 1 the others.

That is 1024 + 128 bytes for 16 x 64 weights, 1.125 bytes a weight where the dense matrix takes 2.

Letters used in shapes: N rows, K columns, both padded; T = N/16 row tiles, S = K/32 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmprune_kernels.errors import KernelError
from llmprune_kernels.formats.sp24 import Sp24

ROWS, COLUMNS = 16, 64
"""What rows and columns are padded to."""


@dataclass(frozen=True)
class Fragments:
    """A 2:4 matrix of 16-bit values in the order in which it is computed with."""

    values: Tensor
    """int32 [T, S, 32, 4]: two values a word."""
    meta: Tensor
    """int32 [T, S/2, 32]: eight nibbles a word."""
    shape: tuple[int, int]
    """Rows and columns before padding."""
    dtype: torch.dtype
    """float16 or bfloat16."""

    @classmethod
    def pack(cls, matrix: Sp24) -> Fragments:
        """Put a matrix into this order, padded with zeros.

        Raises:
            KernelError: the values are not 16-bit floats.
        """
        dtype = matrix.values.dtype
        if dtype not in (torch.float16, torch.bfloat16):
            raise KernelError(
                f"the 2:4 kernels compute with float16 or bfloat16, not {dtype}; convert the weights"
            )
        padded = matrix.padded(ROWS, COLUMNS)
        tiles = padded.shape[0] // ROWS
        words = padded.values.contiguous().view(torch.int32)  # [N, K/4], one group each
        words = words.reshape(tiles, 2, 8, -1, 2, 4).permute(0, 3, 2, 5, 4, 1)
        halves = padded.meta.contiguous().view(torch.int16)  # [N, K/16]
        halves = halves.reshape(tiles, 2, 8, -1, 4).permute(0, 3, 2, 4, 1).contiguous()
        return cls(
            words.reshape(tiles, -1, 32, 4).contiguous(),
            halves.view(torch.int32).reshape(tiles, -1, 32),
            matrix.shape,
            dtype,
        )

    def unpack(self) -> Sp24:
        """The matrix without its padding."""
        tiles, steps = self.values.shape[:2]
        words = self.values.reshape(tiles, steps, 8, 4, 2, 2).permute(0, 5, 2, 1, 4, 3)
        values = words.reshape(ROWS * tiles, 8 * steps).contiguous().view(self.dtype)
        halves = self.meta.contiguous().view(torch.int16).reshape(tiles, -1, 8, 4, 2).permute(0, 4, 2, 1, 3)
        meta = halves.reshape(ROWS * tiles, -1).contiguous().view(torch.uint8)
        rows, columns = self.shape
        return Sp24(values[:rows, : columns // 2].contiguous(), meta[:rows, : columns // 8].contiguous())


def as_fragments(values: Tensor, meta: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Fragments:
    """The matrix behind what an operation receives.

    Raises:
        KernelError: the tensors' shapes or types are not those of such a matrix.
    """
    tiles, steps = -(-rows // ROWS), -(-columns // COLUMNS) * 2
    found = [*values.shape], [*meta.shape], values.dtype, meta.dtype
    wanted = [tiles, steps, 32, 4], [tiles, steps // 2, 32], torch.int32, torch.int32
    if found != wanted:
        raise KernelError(
            f"a packed 2:4 matrix of {rows} x {columns} has values {wanted[0]} and metadata {wanted[1]}, "
            f"both int32; found {found[0]} {found[2]} and {found[1]} {found[3]}"
        )
    return Fragments(values, meta, (rows, columns), dtype)
