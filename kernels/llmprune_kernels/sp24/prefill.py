"""Many tokens times a 2:4 matrix: cuSPARSELt where it wins, else the dense form on cuBLAS.

cuSPARSELt reads an order of its own, so using it means a second copy of the weight: 2.25 bytes a weight in
all, more than the dense 2. So it is used where it is asked for (`accelerate(prefill="dual")`); without it, a
layer unpacks its one copy into scratch for as long as one product takes.

Letters used in shapes: M tokens, N outputs, K inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from llmprune_kernels.closeness import CLOSE, distance
from llmprune_kernels.device import on_device

BUCKETS = (256, 1024, 4096)
"""Numbers of tokens for which the paths are compared; in between, the next larger one's choice serves."""
ROWS, SIDES = 8, 16  # cuSPARSELt takes tokens, and sides of a weight, in multiples of these in 16 bits
REPEATS = 20
_FOUND: dict[tuple[torch.Size, torch.dtype, torch.device], dict[int, int]] = {}
"""The algorithms that win, by the weight's shape: each is searched once."""


class SecondCopy(nn.Module):
    """A weight in cuSPARSELt's order, and its fastest algorithm for the numbers of tokens where it wins."""

    blob: Tensor

    def __init__(self, blob: Tensor, algorithms: dict[int, int]) -> None:
        super().__init__()
        self.register_buffer("blob", blob, persistent=False)
        self.algorithms = algorithms

    @classmethod
    def if_it_wins(cls, weight: Tensor, dense: Callable[[Tensor], Tensor]) -> SecondCopy | None:
        """Compress a dense 2:4 weight [N, K] of 16 bits, or None if that would never be faster.

        Args:
            weight: of any shape; cuSPARSELt takes multiples of 16.
            dense: the product as the layer computes it from its own copy.
        """
        if weight.shape[0] % SIDES or weight.shape[1] % SIDES:
            return None
        key = weight.shape, weight.dtype, weight.device
        with on_device(weight):
            if key not in _FOUND:
                _FOUND[key] = cls(torch._cslt_compress(weight), {})._faster(weight, dense)
            return cls(torch._cslt_compress(weight), _FOUND[key]) if _FOUND[key] else None

    def _faster(self, weight: Tensor, dense: Callable[[Tensor], Tensor]) -> dict[int, int]:
        """The fastest algorithm for each number of tokens where it beats the product from the own copy."""
        found = {}
        for m in BUCKETS:
            x = torch.randn(m, weight.shape[1], dtype=weight.dtype, device=weight.device)
            algorithm = int(torch._cslt_sparse_mm_search(self.blob, x.t(), transpose_result=True))
            run = partial(self._product, x, None, algorithm)
            right = distance(run(), linear(x, weight)) < CLOSE
            if right and _seconds(run) < _seconds(partial(dense, x)):
                found[m] = algorithm
        return found

    def wins(self, m: int) -> bool:
        """Whether this copy is faster for M tokens."""
        return _bucket(m) in self.algorithms

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [M, K] times the transpose of the weight, plus bias; M one of those for which it wins."""
        return self._product(x, bias, self.algorithms[_bucket(len(x))])

    def _product(self, x: Tensor, bias: Tensor | None, algorithm: int) -> Tensor:
        missing = -len(x) % ROWS
        padded = pad(x, (0, 0, 0, missing)) if missing else x  # by nothing, it would still copy
        out = torch._cslt_sparse_mm(self.blob, padded.t(), bias=bias, transpose_result=True, alg_id=algorithm)
        return out[: len(x)]


def _bucket(m: int) -> int:
    return next((largest for largest in BUCKETS if m <= largest), BUCKETS[-1])


def _seconds(run: Callable[[], object]) -> float:
    """The median time of a call, after one that warms up."""
    run()
    times = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[REPEATS // 2]
