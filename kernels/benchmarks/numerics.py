"""Every kernel beside the same product in float64, on random data: the relative error, and what is allowed.

python kernels/benchmarks/numerics.py --out kernels/results
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import timing
import torch
from llmprune_kernels import ops
from llmprune_kernels.formats.fragments import Fragments
from llmprune_kernels.formats.sp24 import Sp24
from registry import HIDDEN, WIDTHS, weight, weight_24
from timing import DEVICE, card, facts
from torch import Tensor
from torch.nn.functional import silu

ALLOWED = {torch.bfloat16: 4e-3, torch.float16: 5e-4}
TOKENS = (1, 3, 8, 16, 33, 64, 128, 300)
TWICE = 2  # rounded two times: gate and up, then their product


def sp24(x: Tensor, channels: int) -> tuple[Tensor, Tensor, int]:
    """A 2:4 product, in the kernel and in float64, and how often it is rounded."""
    dense = weight_24(channels // 16 * 16, x.shape[1], x.dtype)
    packed = Fragments.pack(Sp24.from_dense(dense))
    found = ops.sp24_linear(x, packed.values, packed.meta, None, None, len(dense))
    return found, x.double() @ dense.double().T, 1


def gated(x: Tensor, channels: int) -> tuple[Tensor, Tensor, int]:
    """Gate and up of a dense MLP, in one kernel."""
    gate, up = (weight(channels, x.shape[1], x.dtype) for _ in range(2))
    exact = silu(x.double() @ gate.double().T) * (x.double() @ up.double().T)
    return ops.swiglu(x, gate, up), exact, TWICE


def gated_sp24(x: Tensor, channels: int) -> tuple[Tensor, Tensor, int]:
    """The same of 2:4 weights."""
    dense = [weight_24(channels // 16 * 16, x.shape[1], x.dtype) for _ in range(2)]
    packed = [Fragments.pack(Sp24.from_dense(one)) for one in dense]
    values, meta = (torch.cat([getattr(one, part) for one in packed]) for part in ("values", "meta"))
    gate, up = (x.double() @ one.double().T for one in dense)
    return ops.sp24_swiglu(x, values, meta, len(dense[0])), silu(gate) * up, TWICE


def plain(x: Tensor, channels: int) -> tuple[Tensor, Tensor, int]:
    """A dense product with a bias and a residual."""
    w, bias = weight(channels, x.shape[1], x.dtype), torch.randn(channels, device=DEVICE, dtype=x.dtype)
    residual = torch.randn(len(x), channels, device=DEVICE, dtype=x.dtype)
    exact = x.double() @ w.double().T + bias.double() + residual.double()
    return ops.linear_bias_residual(x, w, bias, residual), exact, 1


KERNELS: dict[str, Callable[[Tensor, int], tuple[Tensor, Tensor, int]]] = {
    "sp24_linear": sp24,
    "sp24_swiglu": gated_sp24,
    "swiglu": gated,
    "linear_bias_residual": plain,
}


def row(name: str, dtype: torch.dtype, m: int, channels: int) -> dict[str, Any]:
    """One measurement: the norm of the difference over that of the exact product."""
    x = torch.randn(m, HIDDEN, device=DEVICE, dtype=dtype)
    found, exact, rounded = KERNELS[name](x, channels)
    error = float((found.double() - exact).norm() / exact.norm())
    told = {"kernel": name, "dtype": str(dtype), "tokens": m, "channels": channels, "error": error}
    return told | {"allowed": rounded * ALLOWED[dtype]}


def main() -> None:
    """Measure all, and fail where one is off."""
    asked = timing.parsed(timing.parser(__doc__))
    torch.manual_seed(0)
    sizes = [width for width in WIDTHS if width % 8 == 0][:2]
    rows = [row(name, dtype, m, n) for name in KERNELS for dtype in ALLOWED for m in TOKENS for n in sizes]
    file = asked.out / f"{card()}_numerics.json"
    file.write_text(json.dumps(facts() | {"rows": rows}, indent=1) + "\n")
    off = [one for one in rows if not one["error"] <= one["allowed"]]
    largest = max(one["error"] for one in rows)
    print(f"{len(rows)} products, {len(off)} of them off; the largest error is {largest:.1e}")
    if off:
        sys.exit(json.dumps(off[0]))


if __name__ == "__main__":
    main()
