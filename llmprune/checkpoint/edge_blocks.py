"""FP8 tensors whose last blocks are smaller than the others, as DeepSeek publishes them.

The low-rank projections of DeepSeek-V3 have 576 rows in blocks of 128. transformers divides a tensor by its
grid of scales, as if all blocks were equal, and refuses it where that leaves a rest.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer


class Unpacking(Fp8Dequantize):  # type: ignore[misc]
    """Fills the last blocks up with zeros, and takes these away again."""

    def _dequantize_one(
        self, quantized: Tensor, scales: Tensor, output_dtype: torch.dtype | None = None
    ) -> Tensor:
        block = self.hf_quantizer.quantization_config.weight_block_size
        rows, columns = (short_of(quantized, scales, block, axis) for axis in (-2, -1))
        if not rows and not columns:
            same: Tensor = super()._dequantize_one(quantized, scales, output_dtype)
            return same
        filled = functional.pad(quantized.float(), (0, columns, 0, rows))
        whole: Tensor = super()._dequantize_one(filled, scales, output_dtype)
        return whole[..., : quantized.shape[-2], : quantized.shape[-1]].contiguous()


def short_of(quantized: Tensor, scales: Tensor, block: list[int] | None, axis: int) -> int:
    """Rows or columns that the last blocks lack."""
    if not block or quantized.dtype != torch.float8_e4m3fn or scales.ndim < 2:
        return 0
    size, of, count = quantized.shape[axis], block[axis], scales.shape[axis]
    return count * of - size if count > 1 and count == math.ceil(size / of) else 0


def install() -> None:
    """Let transformers unpack such tensors, in this process."""

    def load_operations(self: Any) -> dict[str, type]:
        return {"dequantize": Unpacking}

    FineGrainedFP8HfQuantizer.get_load_operations = load_operations
