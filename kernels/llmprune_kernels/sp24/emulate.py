"""`mma.sp.m16n8k32` in torch, register by register, from the description in NVIDIA's PTX ISA.

The instruction is the specification of the fragment order; this lets the order be tested without a GPU.

Letters used in shapes: 32 lanes; lane = 4 g + t.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = torch.arange(32)
G, T = LANES // 4, LANES % 4


def mma_sp(a: Tensor, b: Tensor, c: Tensor, meta: Tensor, selector: int) -> Tensor:
    """C [16, 8] += A [16, 32] B [32, 8] with A at 2:4, every operand as the lanes' registers.

    Args:
        a: 16-bit floats [32, 8], the kept values: register r holds elements 2r and 2r + 1.
        b: 16-bit floats [32, 8].
        c: float32 [32, 4].
        meta: int32 [32].
        selector: 0 or 1, which lanes of each four hold the metadata.

    Returns:
        float32 [32, 4], the new C.
    """
    left = torch.zeros(16, 32, dtype=torch.float64)
    for i in range(8):
        row = G + 8 * (i // 2 % 2)
        group = T + 4 * (i // 4)
        sixteen, nibble = group // 4, group % 4
        word = meta.long()[4 * (row % 8) + 2 * selector + sixteen]
        position = word >> (16 * (row // 8) + 4 * nibble + 2 * (i % 2)) & 3
        left[row, 4 * group + position] += a[:, i].double()
    right = torch.zeros(32, 8, dtype=torch.float64)
    for i in range(8):
        right[2 * T + 8 * (i // 2) + i % 2, G] = b[:, i].double()
    product = left @ right
    return c + torch.stack([product[G + 8 * (i // 2), 2 * T + i % 2] for i in range(4)], 1).float()
