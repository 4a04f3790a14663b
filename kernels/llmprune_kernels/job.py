"""What every launch has in common: what is added at the end, and the buffers that it ends in.

Letters used in shapes: M tokens, N outputs, K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmprune_kernels.device import interpreting
from llmprune_kernels.epilogue import combine_kernel

BLOCK = 512  # outputs that a program adds up


@dataclass(frozen=True, kw_only=True)
class Job:
    """A product of x [M, K] with one matrix of N outputs, or silu(gate) * up of two."""

    x: Tensor
    n: int
    halves: int = 1
    bias: Tensor | None = None
    """[N], for one matrix."""
    residual: Tensor | None = None
    """[M, N], for one matrix."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, N of all halves, K."""
        return self.x.shape[0], self.n * self.halves, self.x.shape[1]

    def buffers(self, splits: int, in_parts: bool) -> tuple[Tensor, Tensor]:
        """Where the result goes, and where the kernel writes: the same, or float32 parts to be added up."""
        # The interpreter cuts bits off where a GPU rounds to 16 bits, so there the kernel writes float32.
        kind = torch.float32 if interpreting() else self.x.dtype
        out = torch.empty(len(self.x), self.n, dtype=kind, device=self.x.device)
        if not in_parts:
            return out, out
        return out, out.new_empty(splits, self.halves, len(self.x), self.n, dtype=torch.float32)

    def extras(self) -> tuple[Tensor, Tensor, bool, bool]:
        """Bias and residual, each with something in its place, and whether they are there."""
        bias, residual = (self.x if term is None else term for term in (self.bias, self.residual))
        return bias, residual, self.bias is not None, self.residual is not None

    def combined(self, out: Tensor, part: Tensor) -> Tensor:
        """The result [M, N], of parts added up in a fixed order if there are any."""
        if part is not out:
            bias, residual, *there = self.extras()
            combine_kernel[(-(-self.n // BLOCK), len(out))](
                part, bias, residual, out, len(out), self.n, self.halves, *there, len(part), BLOCK=BLOCK
            )
        return out.to(self.x.dtype)
