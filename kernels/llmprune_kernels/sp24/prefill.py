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
from torch import Tensor
from torch.nn.functional import pad

BUCKETS = (256, 1024, 4096)
"""Numbers of tokens for which the paths are compared; in between, the next larger one's choice serves."""
ROWS = 8  # cuSPARSELt takes tokens in multiples of this in 16 bits
REPEATS = 20


class SecondCopy:
    """A weight in cuSPARSELt's order, and its fastest algorithm for each number of tokens, if it wins."""

    def __init__(self, weight: Tensor, dense: Callable[[Tensor], Tensor]) -> None:
        """Compress a dense 2:4 weight [N, K], and compare with what would be done without this copy.

        Args:
            weight: 16 bits, both sides multiples of 16.
            dense: the product as the layer computes it from its own copy.
        """
        self.blob: Tensor = torch._cslt_compress(weight)
        self.algorithms: dict[int, int] = {}
        for m in BUCKETS:
            x = torch.randn(m, weight.shape[1], dtype=weight.dtype, device=weight.device)
            algorithm = int(torch._cslt_sparse_mm_search(self.blob, x.t(), transpose_result=True))
            if _seconds(partial(self._product, x, None, algorithm)) < _seconds(partial(dense, x)):
                self.algorithms[m] = algorithm

    def wins(self, m: int) -> bool:
        """Whether this copy is faster for M tokens."""
        return _bucket(m) in self.algorithms

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [M, K] times the transpose of the weight, plus bias; M one of those for which it wins."""
        return self._product(x, bias, self.algorithms[_bucket(len(x))])

    def _product(self, x: Tensor, bias: Tensor | None, algorithm: int) -> Tensor:
        padded = pad(x, (0, 0, 0, -len(x) % ROWS))
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
