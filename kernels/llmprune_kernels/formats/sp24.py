"""2:4 sparsity as it is exchanged: the kept values, and four bits for every group that say where they were.

Every group of four consecutive columns keeps two values. Their positions i0 < i1 make a nibble i0 | i1 << 2,
the metadata of NVIDIA's sparse tensor cores for 16-bit values (PTX ISA, mma.sp); the even group of a pair is
in the low half of a byte. A kept value may be zero, so positions are read from the nibbles, never from the
values.

Letters used in shapes: N rows, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmprune_kernels.errors import KernelError
from llmprune_kernels.formats.dense import BITS, kept_of

FILLERS = (2, 3)  # what a group with fewer than two non-zeros keeps besides; torch's conversion does the same
NEITHER = 255


def _nibbles() -> list[int]:
    """The nibble for each of the 16 sets of non-zero columns, written as bits; NEITHER for more than two."""
    found = []
    for bits in range(16):
        kept = {column for column in range(4) if bits >> column & 1}
        for filler in FILLERS:
            if len(kept) < 2:
                kept.add(filler)
        first, *rest = sorted(kept)
        found.append(first | rest[0] << 2 if len(kept) == 2 else NEITHER)
    return found


NIBBLES = _nibbles()
MASKS = [1 << (nibble & 3) | 1 << (nibble >> 2) for nibble in range(16)]


@dataclass(frozen=True)
class Sp24:
    """A matrix [N, K] of which every group of four columns keeps two values."""

    values: Tensor
    """[N, K/2], any type."""
    meta: Tensor
    """uint8 [N, K/8], two groups a byte."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the dense matrix."""
        return self.values.shape[0], 2 * self.values.shape[1]

    @classmethod
    def from_dense(cls, dense: Tensor, mask: Tensor | None = None) -> Sp24:
        """The kept values of `dense`.

        Args:
            dense: [N, K], K a multiple of 8.
            mask: bool [N, K], what to keep; at most two of four. None keeps what is not zero.

        Raises:
            KernelError: matrix or mask has another shape, or a group keeps more than two; the first is named.
        """
        kept = kept_of(dense, mask, 8)
        rows, columns = dense.shape
        weights = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=dense.device)
        sets = (kept.reshape(rows, -1, 4).to(torch.uint8) * weights).sum(-1, dtype=torch.uint8)
        nibbles = _lookup(NIBBLES, sets)
        if (bad := nibbles == NEITHER).any():
            row, group = (int(i) for i in bad.nonzero()[0])
            raise KernelError(
                f"this is no 2:4 matrix: row {row} has {int(kept[row, 4 * group :][:4].sum())} non-zeros in "
                f"group {group} (columns {4 * group} to {4 * group + 3}), where two are allowed"
            )
        groups = dense.contiguous().view(BITS[dense.itemsize]).reshape(rows, -1, 4)
        values = groups.gather(-1, _positions(nibbles)).reshape(rows, columns // 2).view(dense.dtype)
        return cls(values, nibbles[:, ::2] | nibbles[:, 1::2] << 4)

    def nibbles(self) -> Tensor:
        """uint8 [N, K/4], one for each group."""
        return torch.stack((self.meta & 15, self.meta >> 4), -1).reshape(self.meta.shape[0], -1)

    def mask(self) -> Tensor:
        """bool [N, K], what is kept, zeros among them included."""
        sets = _lookup(MASKS, self.nibbles())
        columns = torch.arange(4, dtype=torch.uint8, device=sets.device)
        return (sets[..., None] >> columns & 1).bool().reshape(self.shape)

    def to_dense(self) -> Tensor:
        """The matrix [N, K]."""
        bits = self.values.contiguous().view(BITS[self.values.itemsize])
        rows, columns = self.shape
        groups = bits.new_zeros(rows, columns // 4, 4)
        groups.scatter_(-1, _positions(self.nibbles()), bits.reshape(rows, -1, 2))
        return groups.reshape(rows, columns).view(self.values.dtype)

    def padded(self, rows: int, columns: int) -> Sp24:
        """With zeros below and to the right, up to multiples of `rows` and `columns` (a multiple of 8)."""
        below = -self.shape[0] % rows
        right = -self.shape[1] % columns
        if not below and not right:
            return self
        bits = self.values.view(BITS[self.values.itemsize])
        values = torch.nn.functional.pad(bits, (0, right // 2, 0, below)).view(self.values.dtype)
        empty = NIBBLES[0] | NIBBLES[0] << 4
        return Sp24(values, torch.nn.functional.pad(self.meta, (0, right // 8, 0, below), value=empty))

    @classmethod
    def from_bitmask(cls, compressed: Tensor, bitmask: Tensor) -> Sp24:
        """From `sparse-24-bitmask`, which compressed-tensors once wrote: values [N, K/2], uint8 [N, K/8].

        Raises:
            KernelError: there are more values than bits or fewer, or a group keeps another number than two.
        """
        if bitmask.ndim != 2 or compressed.numel() != 4 * bitmask.numel():
            raise KernelError(
                "a sparse-24-bitmask is a matrix with a byte for every four values; found "
                f"{compressed.numel()} values and a mask {list(bitmask.shape)}"
            )
        sets = torch.stack((bitmask & 15, bitmask >> 4), -1).reshape(bitmask.shape[0], -1)
        bits = torch.arange(4, dtype=torch.uint8, device=sets.device)
        if ((kept := (sets[..., None] >> bits & 1).sum(-1)) != 2).any():
            row, group = (int(i) for i in (kept != 2).nonzero()[0])
            raise KernelError(
                f"this is no sparse-24-bitmask: row {row} keeps {int(kept[row, group])} values in "
                f"group {group}, where two are kept"
            )
        nibbles = _lookup(NIBBLES, sets)
        return cls(compressed.reshape(len(sets), -1), nibbles[:, ::2] | nibbles[:, 1::2] << 4)

    def to_bitmask(self) -> tuple[Tensor, Tensor]:
        """As `sparse-24-bitmask`: values [N, K/2], and uint8 [N, K/8] with a bit for every column."""
        sets = _lookup(MASKS, self.nibbles())
        return self.values, sets[:, ::2] | sets[:, 1::2] << 4

    @classmethod
    def from_cutlass(cls, values: Tensor, meta: Tensor) -> Sp24:
        """From what torch's CUTLASS conversion makes of 16-bit or int8 values.

        Raises:
            KernelError: it makes no such thing.
        """
        element = _cutlass_element(values)
        wanted = [values.shape[0], values.shape[1] // (4 * element.itemsize)]
        if [*meta.shape] != wanted or meta.dtype != element:
            raise KernelError(
                f"CUTLASS's metadata of {values.dtype} values {list(values.shape)} are {element} {wanted}, "
                f"not {meta.dtype} {list(meta.shape)}"
            )
        plain = meta.reshape(-1)[_cutlass_order(values, meta)]
        return cls(values, plain.view(torch.uint8).reshape(values.shape[0], -1))

    def to_cutlass(self) -> tuple[Tensor, Tensor]:
        """As torch's CUTLASS conversion stores 16-bit (int16 metadata) and int8 values (int32).

        Raises:
            KernelError: a type or a shape that it has no form for.
        """
        element = _cutlass_element(self.values)
        plain = self.meta.contiguous().view(element)
        out = torch.empty_like(plain)
        out.view(-1)[_cutlass_order(self.values, plain)] = plain.reshape(-1)
        return self.values, out


def _positions(nibbles: Tensor) -> Tensor:
    """int64 [..., 2], the two kept columns of every group."""
    return torch.stack((nibbles & 3, nibbles >> 2), -1).long()


def _lookup(table: list[int], index: Tensor) -> Tensor:
    return torch.tensor(table, dtype=torch.uint8, device=index.device)[index.int()]


def _cutlass_element(values: Tensor) -> torch.dtype:
    """The type of the metadata that CUTLASS keeps beside values [N, K/2].

    Raises:
        KernelError: a type or a shape that it has no form for.
    """
    element = torch.int32 if values.dtype == torch.int8 else torch.int16
    rows, columns = values.shape[0], 2 * values.shape[1]
    per_row = 4 * element.itemsize * 2
    least = 16 if element == torch.int32 else 32
    if values.dtype not in (torch.int8, torch.float16, torch.bfloat16):
        raise KernelError(f"CUTLASS keeps float16, bfloat16 and int8 at 2:4, not {values.dtype}")
    if rows % least or columns % per_row:
        raise KernelError(
            f"CUTLASS needs rows in multiples of {least} and columns of {per_row}, not {rows} x {columns}"
            "; pad the matrix"
        )
    return element


def _cutlass_order(values: Tensor, meta: Tensor) -> Tensor:
    """Where each metadata element, row by row, lies in CUTLASS's interleaved order."""
    # The order is torch's own, so torch's own function is asked for it.
    from torch.sparse import _semi_structured_conversions as torch_conversions

    order: Tensor = torch_conversions._calculate_meta_reordering_scatter_offsets(
        meta.shape[0], meta.shape[1], meta.dtype, values.device
    )
    return order
