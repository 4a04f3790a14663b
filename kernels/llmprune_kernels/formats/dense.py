"""What every format asks of a dense matrix, whatever the type of its values.

Letters used in shapes: N rows, K columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmprune_kernels.errors import KernelError

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # integers to move values of any type about, by bytes


def kept_of(dense: Tensor, mask: Tensor | None, multiple: int) -> Tensor:
    """bool [N, K], what a format is to keep of a matrix [N, K]: a bool `mask`, or all that is not zero.

    Raises:
        KernelError: it is no matrix or an empty one, its values take 8 bytes, K is not a multiple of
            `multiple`, or the mask has another shape.
    """
    if dense.itemsize not in BITS:
        raise KernelError(f"this format holds values of 1, 2 or 4 bytes, not {dense.dtype}; convert them")
    if dense.ndim == 2 and not dense.numel():
        raise KernelError(f"this format holds no empty matrix, and this one has shape {list(dense.shape)}")
    if dense.ndim != 2 or dense.shape[1] % multiple:
        raise KernelError(
            f"this format needs a matrix whose columns are a multiple of {multiple}, not shape "
            f"{list(dense.shape)}; pad it with zero columns"
        )
    if mask is None:
        return (dense.float() if dense.is_floating_point() and dense.itemsize == 1 else dense) != 0
    if mask.shape != dense.shape:
        raise KernelError(
            f"the mask has shape {list(mask.shape)}, and the matrix {list(dense.shape)}; they must agree"
        )
    return mask
