"""What is measured: shapes of real models, numbers of tokens, and everything that can compute the product.

A provider makes random weights of one shape and gives a function of x; each call makes weights of its own,
so that a run can rotate through more of them than the cache holds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from llmprune_kernels import ops
from llmprune_kernels.formats.fragments import Fragments
from llmprune_kernels.formats.sp24 import Sp24
from llmprune_kernels.modules import WIDTH
from llmprune_kernels.sp24 import launch
from timing import DEVICE
from torch import Tensor
from torch.nn.functional import linear, pad, silu

Product = Callable[[Tensor], Tensor]
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
SPARSE = {
    "llama-2-7b qkv": (12288, 4096),
    "llama-2-7b o": (4096, 4096),
    "llama-2-7b gate_up": (22016, 4096),
    "llama-2-7b down": (4096, 11008),
    "llama-3-8b qkv": (6144, 4096),
    "llama-3-8b gate_up": (28672, 4096),
    "llama-3-8b down": (4096, 14336),
    "70b qkv": (10240, 8192),
    "70b o": (8192, 8192),
    "70b gate_up": (57344, 8192),
    "70b down": (8192, 28672),
}
"""N, K of 2:4 products."""
DECIDING = ("llama-3-8b gate_up", "llama-2-7b o")
"""The shapes that have a target."""
REHEARSED = {"small": (128, 256)}
"""Where there is no GPU."""
HIDDEN, DENSE_CHANNELS = (4096, 11008) if DEVICE == "cuda" else (128, 192)
WIDTHS = (7713, 7712, 7680, 7744, 7808) if DEVICE == "cuda" else (120, 128)
"""Channels of a shrunk MLP, beside those of the dense one."""


def weight(n: int, k: int, dtype: torch.dtype) -> Tensor:
    """Random, and of the scale that keeps products near 1."""
    return torch.randn(n, k, device=DEVICE, dtype=dtype) / k**0.5


def weight_24(n: int, k: int, dtype: torch.dtype) -> Tensor:
    """The same with the two smallest of every four set to zero."""
    groups = weight(n, k, dtype).view(n, -1, 4)
    return groups.scatter(-1, groups.abs().topk(2, largest=False).indices, 0).view(n, k)


def cublas(n: int, k: int, dtype: torch.dtype) -> Product:
    """The dense product: what everything is compared with."""
    w = weight(n, k, dtype)
    return lambda x: linear(x, w)


def ours(n: int, k: int, dtype: torch.dtype) -> Product:
    """What `Sp24Linear` runs."""
    packed = Fragments.pack(Sp24.from_dense(weight_24(n, k, dtype)))
    return lambda x: ops.sp24_linear(x, packed.values, packed.meta, None, None, n)


def ours_portable(n: int, k: int, dtype: torch.dtype) -> Product:
    """The kernel without sparse tensor cores."""
    packed = Fragments.pack(Sp24.from_dense(weight_24(n, k, dtype)))

    def run(x: Tensor) -> Tensor:
        job = launch.Sp24Job(x=x, n=n, values=packed.values, meta=packed.meta)
        return launch.portable(job, launch.portable_default(job))

    return run


def torch_semi_structured(n: int, k: int, dtype: torch.dtype, *, cutlass: bool) -> Product:
    """torch's own 2:4 product, by CUTLASS or cuSPARSELt."""
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    SparseSemiStructuredTensor._FORCE_CUTLASS = cutlass
    w = to_sparse_semi_structured(weight_24(n, k, dtype))
    return lambda x: linear(x, w)


def torch_cutlass(n: int, k: int, dtype: torch.dtype) -> Product:
    """By CUTLASS."""
    return torch_semi_structured(n, k, dtype, cutlass=True)


def torch_cusparselt(n: int, k: int, dtype: torch.dtype) -> Product:
    """By cuSPARSELt with its default algorithm."""
    return torch_semi_structured(n, k, dtype, cutlass=False)


def cusparselt_searched(n: int, k: int, dtype: torch.dtype) -> Product:
    """By cuSPARSELt with the algorithm that its search finds for each number of tokens."""
    blob = torch._cslt_compress(weight_24(n, k, dtype))
    found: dict[int, int] = {}

    def run(x: Tensor) -> Tensor:
        m = len(x)
        if missing := -m % 8:
            x = pad(x, (0, 0, 0, missing))
        if m not in found:
            found[m] = int(torch._cslt_sparse_mm_search(blob, x.t(), transpose_result=True))
        return torch._cslt_sparse_mm(blob, x.t(), transpose_result=True, alg_id=found[m])[:m]

    return run


SPARSE_PROVIDERS = {
    "cublas": cublas,
    "ours": ours,
    "ours, portable": ours_portable,
    "torch, cutlass": torch_cutlass,
    "torch, cusparselt": torch_cusparselt,
    "cusparselt, searched": cusparselt_searched,
}


def mlp(channels: int, dtype: torch.dtype, *, fused: bool, padded: bool) -> Product:
    """A gated MLP of HIDDEN inputs, by our kernels or by three calls of cuBLAS."""
    gate, up, down = (weight(channels, HIDDEN, dtype) for _ in range(3))
    if padded:
        gate, up, down = (pad(w, (0, 0, 0, -channels % WIDTH)) for w in (gate, up, down))
    down = down.t().contiguous()
    if fused:
        return lambda x: ops.linear_bias_residual(ops.swiglu(x, gate, up), down, None, None)
    return lambda x: linear(silu(linear(x, gate)) * linear(x, up), down)
