"""The operations as torch sees them: registered whole, compiled, and unforgiving of what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from llmprune_kernels import ops
from llmprune_kernels.dense import naive
from llmprune_kernels.errors import KernelError
from torch import Tensor

from tests.kernels.matrices import normal, packed

BF16 = torch.bfloat16
M, N, K = 5, 40, 72


def arguments(name: str) -> tuple[Any, ...]:
    x, weight, up = (normal(*shape, dtype=BF16, seed=i) for i, shape in enumerate([(M, K), (N, K), (N, K)]))
    bias, residual = normal(N, dtype=BF16), normal(M, N, dtype=BF16)
    sparse = packed(N, K, BF16)
    both = torch.cat([sparse.values] * 2), torch.cat([sparse.meta] * 2)
    return {
        "sp24_linear": (x, sparse.values, sparse.meta, bias, residual, N),
        "sp24_swiglu": (x, *both, N),
        "swiglu": (x, weight, up),
        "linear_bias_residual": (x, weight, bias, residual),
    }[name]


names = pytest.mark.parametrize("name", ["sp24_linear", "sp24_swiglu", "swiglu", "linear_bias_residual"])


@names
def test_torch_accepts_the_registration(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.llmprune, name).default, arguments(name))


@names
def test_it_compiles_as_one_graph(name: str) -> None:
    operation, (x, *rest) = getattr(torch.ops.llmprune, name), arguments(name)
    compiled = torch.compile(lambda x: operation(x, *rest) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), operation(x, *rest) * 2)


@names
def test_there_is_no_way_back(name: str) -> None:
    x, *rest = arguments(name)
    out = getattr(torch.ops.llmprune, name)(x.requires_grad_(), *rest)
    with pytest.raises(KernelError, match=f"{name} is for inference and has no backward"):
        out.sum().backward()


def test_the_cpu_form_is_the_specification() -> None:
    x, values, meta, bias, residual, n = arguments("sp24_linear")
    dense = packed(N, K, BF16).unpack().to_dense()
    assert torch.equal(
        ops.sp24_linear(x, values, meta, bias, residual, n), naive.linear(x, dense, bias, residual)
    )
    exact = x.double() @ dense.double().T + bias.double() + residual.double()
    found = ops.sp24_linear(x, values, meta, bias, residual, n).double()
    assert (found - exact).norm() / exact.norm() < 4e-3


def changed(name: str, place: int, new: Any) -> tuple[Any, ...]:
    found = [*arguments(name)]
    found[place] = new(found[place])
    return tuple(found)


@pytest.mark.parametrize(
    ("name", "place", "new", "said"),
    [
        ("sp24_linear", 0, Tensor.float, "take a matrix of float16 or bfloat16, not torch.float32"),
        ("sp24_linear", 0, lambda x: x[None], "of shape [1, 5, 72]"),
        ("sp24_linear", 0, lambda x: normal(M, 2 * K, dtype=BF16), "of 40 x 144 has values [3, 6, 32, 4]"),
        ("sp24_linear", 0, lambda x: x[:, :70], "has a multiple of 8 inputs, not 70"),
        (
            "sp24_linear",
            1,
            lambda v: v.transpose(2, 3).contiguous().transpose(2, 3),
            "in one piece of memory",
        ),
        ("sp24_linear", 1, Tensor.long, "found [3, 4, 32, 4] torch.int64"),
        ("sp24_linear", 3, Tensor.float, "bias must be a contiguous torch.bfloat16 tensor of shape [40]"),
        (
            "sp24_linear",
            4,
            lambda r: r[:1],
            "residual must be a contiguous torch.bfloat16 tensor of shape [5, 40]",
        ),
        ("sp24_linear", 5, lambda n: 80, "of 80 x 72 has values [5, 4, 32, 4]"),
        ("sp24_swiglu", 1, lambda v: v[:4], "found [2, 4, 32, 4]"),
        ("sp24_swiglu", 1, lambda v: v[:1], "found 1 of values and 6 of metadata"),
        ("swiglu", 1, Tensor.half, "do not fit a weight torch.float16"),
        ("swiglu", 2, lambda w: w[:8], "do not fit a weight torch.bfloat16 [8, 72]"),
        ("linear_bias_residual", 1, lambda w: normal(K, N, dtype=BF16).T, "call contiguous() on it once"),
    ],
)
def test_what_does_not_fit_is_said(name: str, place: int, new: Any, said: str) -> None:
    with pytest.raises(KernelError) as caught:
        getattr(torch.ops.llmprune, name)(*changed(name, place, new))
    assert said in str(caught.value)


def test_a_weight_elsewhere_is_said() -> None:
    with pytest.raises(KernelError, match="the inputs are on cpu and a weight is on meta"):
        ops._same_device(normal(2, 2), torch.empty(2, device="meta"))
