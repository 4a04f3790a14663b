"""What needs a GPU: the kernels' numbers on silicon, and a real model's text with them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from llmprune_kernels import acceleration, ops
from llmprune_kernels.formats.fragments import Fragments
from llmprune_kernels.modules import Sp24Linear
from torch import Tensor

import llmprune
from llmprune.cli import demo_model
from tests.kernels.matrices import error, normal, packed
from tests.kernels.models import kernels_in

pytestmark = pytest.mark.gpu
BF16, F16 = torch.bfloat16, torch.float16


@functools.cache
def on_gpu(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Fragments:
    """A random packed 2:4 matrix."""
    made = packed(rows, columns, dtype, seed)
    return dataclasses.replace(made, values=made.values.cuda(), meta=made.meta.cuda())


def allowed(dtype: torch.dtype) -> float:
    return 4e-3 if dtype == BF16 else 5e-4


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("m", [1, 3, 8, 9, 16, 33, 64, 128, 200])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (4096, 11008), (200, 328), (40, 72)])
def test_sparse_products_are_right_and_repeat(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    weight = on_gpu(n, k, dtype)
    x, bias, residual = (normal(*shape, dtype=dtype).cuda() for shape in ((m, k), (n,), (m, n)))
    exact = x.double() @ weight.unpack().to_dense().double().T + bias.double() + residual.double()
    found = ops.sp24_linear(x, weight.values, weight.meta, bias, residual, n)
    assert error(found, exact) < allowed(dtype)
    assert torch.equal(found, ops.sp24_linear(x, weight.values, weight.meta, bias, residual, n))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("m", [1, 7, 16, 50, 128, 300])
@pytest.mark.parametrize(("channels", "k"), [(11008, 4096), (100, 72)])
def test_gated_products_are_right_and_repeat(m: int, channels: int, k: int, dtype: torch.dtype) -> None:
    gate, up = (on_gpu(channels, k, dtype, seed) for seed in (1, 2))
    scaled = normal(m, k, dtype=dtype).cuda() / k**0.5

    def exact(*weights: Tensor) -> Tensor:
        a, b = (scaled.double() @ w.double().T for w in weights)
        return torch.nn.functional.silu(a) * b

    values, meta = torch.cat([gate.values, up.values]), torch.cat([gate.meta, up.meta])
    dense = [w.unpack().to_dense() for w in (gate, up)]
    found = ops.sp24_swiglu(scaled, values, meta, channels)
    assert error(found, exact(*dense)) < 2 * allowed(dtype)
    assert torch.equal(found, ops.sp24_swiglu(scaled, values, meta, channels))
    assert error(ops.swiglu(scaled, *dense), exact(*dense)) < 2 * allowed(dtype)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own compiler
def test_operations_work_in_cuda_graphs_and_compiled() -> None:
    weight = packed(256, 512, BF16)
    values, meta, x = weight.values.cuda(), weight.meta.cuda(), normal(1, 512, dtype=BF16).cuda()

    def run(x: Tensor) -> Tensor:
        return ops.sp24_linear(x, values, meta, None, None, 256) * 2

    wanted = run(x)
    assert torch.equal(torch.compile(run, fullgraph=True)(x), wanted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x)
    graph.replay()
    assert torch.equal(out, wanted)


def test_a_real_24_model_writes_the_same_text_with_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a kernel computes the same, be it faster on layers this small or not."""
    monkeypatch.setattr(acceleration, "_microseconds", lambda layer, x: 1.0 if kernels_in(layer) else 2.0)
    source = demo_model.model()
    how = {
        "calibration": {"dataset": "builtin", "samples": 8, "length": 256},
        "dtype": "float16",
    }  # in bfloat16, near ties fall either way
    llmprune.prune(source, "wanda-2of4", out=tmp_path / "out", **how)
    plain, tokenizer = llmprune.load(str(tmp_path / "out"), dtype="float16", kernels="none")
    fast, _ = llmprune.load(str(tmp_path / "out"), dtype="float16", kernels="auto")
    assert any(isinstance(module, Sp24Linear) for module in fast.modules())
    ids = tokenizer("The history of the city", return_tensors="pt").input_ids.cuda()
    texts = [model.generate(ids, max_new_tokens=64, do_sample=False) for model in (plain, fast)]
    assert torch.equal(*texts)
