"""The operations, as torch sees them: opaque to the compiler, with a CPU form and a CUDA form of each.

Each runs in torch.compile and in CUDA graphs. They are for inference: going backward through one is an error.

Letters used in shapes: M tokens, N outputs, K inputs, I channels. A packed weight is two tensors, its values
and its metadata (formats/fragments.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn.functional import linear as cublas
from torch.nn.functional import silu

from llmprune_kernels import device
from llmprune_kernels.dense import naive as dense_naive
from llmprune_kernels.errors import KernelError
from llmprune_kernels.formats.fragments import Fragments, as_fragments
from llmprune_kernels.sp24 import naive as sp24_naive

MOST_TOKENS = 128
"""With more, reading a packed weight is no longer all the work, and its dense form on cuBLAS is faster."""
FEW_TOKENS = 16
"""Up to here the fused dense kernels run; with more, cuBLAS with its own epilogues."""


@custom_op("llmprune::sp24_linear", mutates_args=(), device_types="cpu")
def sp24_linear(
    x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, residual: Tensor | None, n: int
) -> Tensor:
    """x [M, K] times the transpose of a packed 2:4 weight [N, K], plus bias [N] and residual [M, N].

    Raises:
        KernelError: shapes, types or devices do not fit, or no kernel runs on the device.
    """
    weight = _packed(x, values, meta, n)
    _check_extras(x, n, bias, residual)
    return sp24_naive.linear(x, weight, bias, residual)


@sp24_linear.register_kernel("cuda")
def _sp24_linear_cuda(
    x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, residual: Tensor | None, n: int
) -> Tensor:
    weight = _packed(x, values, meta, n)
    _check_extras(x, n, bias, residual)
    _require_kernels(x)
    from llmprune_kernels.sp24 import launch

    if len(x) <= MOST_TOKENS:
        return launch.run(launch.Sp24Job(x=x, n=n, values=values, meta=meta, bias=bias, residual=residual))
    return _plus(cublas(x, launch.unpacked(weight), bias), residual)


@sp24_linear.register_fake
def _sp24_linear_fake(
    x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, residual: Tensor | None, n: int
) -> Tensor:
    return x.new_empty(x.shape[0], n)


@custom_op("llmprune::sp24_swiglu", mutates_args=(), device_types="cpu")
def sp24_swiglu(x: Tensor, values: Tensor, meta: Tensor, channels: int) -> Tensor:
    """silu(x gate^T) * (x up^T), [M, I], of packed 2:4 weights [I, K]: the gate's tiles, then the others.

    Raises:
        KernelError: shapes, types or devices do not fit, or no kernel runs on the device.
    """
    gate, up = (_packed(x, v, m, channels) for v, m in _halves(values, meta))
    return sp24_naive.swiglu(x, gate, up)


@sp24_swiglu.register_kernel("cuda")
def _sp24_swiglu_cuda(x: Tensor, values: Tensor, meta: Tensor, channels: int) -> Tensor:
    halves = [_packed(x, v, m, channels) for v, m in _halves(values, meta)]
    _require_kernels(x)
    from llmprune_kernels.sp24 import launch

    if len(x) <= MOST_TOKENS:
        return launch.run(launch.Sp24Job(x=x, n=channels, halves=2, values=values, meta=meta))
    gate, up = (cublas(x, launch.unpacked(half)) for half in halves)
    return silu(gate, inplace=True).mul_(up)


@sp24_swiglu.register_fake
def _sp24_swiglu_fake(x: Tensor, values: Tensor, meta: Tensor, channels: int) -> Tensor:
    return x.new_empty(x.shape[0], channels)


@custom_op("llmprune::swiglu", mutates_args=(), device_types="cpu")
def swiglu(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """silu(x gate^T) * (x up^T), [M, I], of dense weights [I, K].

    Raises:
        KernelError: shapes, types or devices do not fit, or no kernel runs on the device.
    """
    _check_weights(x, gate, up)
    return dense_naive.swiglu(x, gate, up)


@swiglu.register_kernel("cuda")
def _swiglu_cuda(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    _check_weights(x, gate, up)
    if len(x) > FEW_TOKENS:
        return silu(cublas(x, gate), inplace=True).mul_(cublas(x, up))
    _require_kernels(x)
    from llmprune_kernels.dense import launch

    return launch.run(launch.DenseJob(x=x, n=len(gate), halves=2, weight=gate, up=up))


@swiglu.register_fake
def _swiglu_fake(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], gate.shape[0])


@custom_op("llmprune::linear_bias_residual", mutates_args=(), device_types="cpu")
def linear_bias_residual(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [M, K] times the transpose of a dense weight [N, K], plus bias [N] and residual [M, N].

    Raises:
        KernelError: shapes, types or devices do not fit, or no kernel runs on the device.
    """
    _check_weights(x, weight)
    _check_extras(x, len(weight), bias, residual)
    return dense_naive.linear(x, weight, bias, residual)


@linear_bias_residual.register_kernel("cuda")
def _linear_bias_residual_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    _check_weights(x, weight)
    _check_extras(x, len(weight), bias, residual)
    if len(x) > FEW_TOKENS:
        return _plus(cublas(x, weight, bias), residual)
    _require_kernels(x)
    from llmprune_kernels.dense import launch

    return launch.run(launch.DenseJob(x=x, n=len(weight), weight=weight, bias=bias, residual=residual))


@linear_bias_residual.register_fake
def _linear_bias_residual_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _no_backward(name: str) -> Callable[..., Any]:
    def backward(context: Any, gradient: Tensor) -> Any:
        raise KernelError(
            f"{name} is for inference and has no backward; train the model before its kernels are chosen"
        )

    return backward


for _op in (sp24_linear, sp24_swiglu, swiglu, linear_bias_residual):
    _op.register_autograd(_no_backward(_op._qualname))


def _plus(out: Tensor, residual: Tensor | None) -> Tensor:
    return out if residual is None else out.add_(residual)


def _halves(values: Tensor, meta: Tensor) -> list[tuple[Tensor, Tensor]]:
    if len(values) % 2 or len(meta) % 2:
        raise KernelError(
            f"a packed gate and up have an even number of row tiles, as many each; found {len(values)} of "
            f"values and {len(meta)} of metadata"
        )
    return [*zip(values.chunk(2), meta.chunk(2), strict=True)]


def _packed(x: Tensor, values: Tensor, meta: Tensor, n: int) -> Fragments:
    """The packed weight, after a look at everything that a kernel would take on trust."""
    if x.ndim != 2 or x.dtype not in (torch.float16, torch.bfloat16):
        raise KernelError(
            f"the 2:4 kernels take a matrix of float16 or bfloat16, not {x.dtype} of shape {list(x.shape)}"
        )
    if not values.is_contiguous() or not meta.is_contiguous():
        raise KernelError("a packed weight must lie in one piece of memory; call contiguous() on it once")
    if x.shape[1] % 8:
        raise KernelError(f"a packed 2:4 weight has a multiple of 8 inputs, not {x.shape[1]}")
    _same_device(x, values, meta)
    return as_fragments(values, meta, n, x.shape[1], x.dtype)


def _check_weights(x: Tensor, *weights: Tensor) -> None:
    for weight in weights:
        if x.ndim != 2 or weight.shape != (len(weights[0]), x.shape[1]) or weight.dtype != x.dtype:
            raise KernelError(
                f"inputs {x.dtype} {list(x.shape)} do not fit a weight {weight.dtype} {list(weight.shape)}; "
                "both need the same type and as many columns"
            )
        if not weight.is_contiguous():
            raise KernelError(
                "the weight's rows do not follow one another in memory; call contiguous() on it once"
            )
    _same_device(x, *weights)


def _check_extras(x: Tensor, n: int, bias: Tensor | None, residual: Tensor | None) -> None:
    for name, term, shape in (("bias", bias, [n]), ("residual", residual, [len(x), n])):
        if term is None:
            continue
        if [*term.shape] != shape or term.dtype != x.dtype or not term.is_contiguous():
            raise KernelError(
                f"the {name} must be a contiguous {x.dtype} tensor of shape {shape}, "
                f"not {term.dtype} {list(term.shape)}"
            )
        _same_device(x, term)


def _same_device(x: Tensor, *others: Tensor) -> None:
    for other in others:
        if other.device != x.device:
            raise KernelError(
                f"the inputs are on {x.device} and a weight is on {other.device}; move one of them"
            )


def _require_kernels(x: Tensor) -> None:
    if reason := device.why_not(x.device):
        raise KernelError(reason)
