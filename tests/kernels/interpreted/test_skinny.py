"""The sparse tensor core's kernel: its Gluon code on the CPU, with the instruction emulated."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from llmprune_kernels.sp24 import launch, naive
from torch import Tensor

from tests.kernels.interpreted import gluon_on_cpu
from tests.kernels.matrices import error, normal, packed

BF16, F16 = torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def _gluon(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCpu:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return partial(gluon_on_cpu.run, kernel, grid)

    kernel = launch.skinny_kernel
    monkeypatch.setattr(launch, "skinny_kernel", OnCpu())


def job(m: int, n: int, k: int, dtype: torch.dtype, halves: int = 1) -> tuple[launch.Sp24Job, Tensor]:
    """A product and what it should give."""
    x = normal(m, k, dtype=dtype, seed=1)
    weights = [packed(n, k, dtype, seed) for seed in range(halves)]
    values, meta = torch.cat([w.values for w in weights]), torch.cat([w.meta for w in weights])
    if halves == 2:
        return launch.Sp24Job(x=x, n=n, halves=2, values=values, meta=meta), naive.swiglu(x, *weights)
    bias, residual = normal(n, dtype=dtype, seed=2), normal(m, n, dtype=dtype, seed=3)
    return launch.Sp24Job(x=x, n=n, values=values, meta=meta, bias=bias, residual=residual), naive.linear(
        x, weights[0], bias, residual
    )


@pytest.mark.parametrize(
    ("m", "n", "k", "dtype", "halves"),
    [
        (1, 64, 512, BF16, 1),
        (3, 40, 200, F16, 1),  # rows, columns and tokens that no tile divides
        (16, 64, 256, BF16, 2),
        (20, 48, 128, F16, 2),
        (40, 32, 72, BF16, 1),
    ],
)
def test_the_default_cut_gives_the_product(m: int, n: int, k: int, dtype: torch.dtype, halves: int) -> None:
    asked, wanted = job(m, n, k, dtype, halves)
    found = launch.skinny(asked, launch.skinny_default(asked))
    assert found.dtype == dtype
    assert error(found, wanted) < (4e-3 if dtype == BF16 else 5e-4)


@pytest.mark.parametrize(
    "cut",
    [
        {"RT": 2, "MT": 1, "WARPS_N": 2, "WARPS_K": 2, "SPLITS": 1, "UNROLL": 1},
        {"RT": 1, "MT": 2, "WARPS_N": 1, "WARPS_K": 4, "SPLITS": 2, "UNROLL": 2},
        {"RT": 2, "MT": 4, "WARPS_N": 1, "WARPS_K": 1, "SPLITS": 3, "UNROLL": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize(("m", "halves", "ordered"), [(5, 1, 0), (12, 2, 0), (12, 2, 1)])
def test_every_cut_gives_the_product(cut: dict[str, int], m: int, halves: int, ordered: int) -> None:
    asked, wanted = job(m, 56, 328, BF16, halves)
    assert error(launch.skinny(asked, cut | {"PACKED": ordered}), wanted) < 4e-3


@pytest.mark.parametrize("place", [(slice(0, 3), slice(1, 129)), (slice(1, 4), slice(0, 128))], ids=str)
def test_inputs_may_begin_anywhere(place: tuple[slice, slice]) -> None:
    asked, wanted = job(3, 32, 128, BF16)
    wide = torch.zeros(5, 131, dtype=BF16)
    wide[place] = asked.x
    moved = replace(asked, x=wide[place])
    assert torch.equal(
        launch.skinny(moved, launch.skinny_default(moved)), launch.skinny(asked, launch.skinny_default(asked))
    )
    one = replace(asked, x=wide[place][:1], residual=asked.residual[:1])  # contiguous, and oddly aligned
    assert error(launch.skinny(one, launch.skinny_default(one)), wanted[:1]) < 4e-3


def test_what_a_search_would_try_gives_the_product() -> None:
    asked, wanted = job(9, 32, 128, BF16)
    cuts = [*launch.skinny_cuts(asked)]
    tried = [*cuts, *launch.shares(cuts[0])]
    assert len(tried) > 20
    for cut in tried[::7]:
        assert error(launch.skinny(asked, cut), wanted) < 4e-3
