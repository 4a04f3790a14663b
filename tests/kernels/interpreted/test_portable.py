"""The kernels that run anywhere, under Triton's interpreter, against their specification in torch."""

from __future__ import annotations

import pytest
import torch
from llmprune_kernels.dense import launch as dense
from llmprune_kernels.dense import naive as dense_naive
from llmprune_kernels.sp24 import decode, launch, naive

from tests.kernels.matrices import error, normal, packed

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# M, N, K that no tile divides among them, then programs that share out K, and matrices that are read at once.
CASES = [
    (1, 64, 128, BF16, 1, 1),
    (5, 40, 200, F16, 3, 1),
    (17, 24, 72, BF16, 1, 2),
    (3, 130, 64, F16, 2, 2),
]


def allowed(dtype: torch.dtype) -> float:
    """What the kernels promise, relative to sums in higher precision."""
    return {BF16: 4e-3, F16: 5e-4, F32: 1e-6}[dtype]


@pytest.mark.parametrize(("m", "n", "k", "dtype", "splits", "halves"), CASES)
def test_a_packed_product_equals_the_naive_one(
    m: int, n: int, k: int, dtype: torch.dtype, splits: int, halves: int
) -> None:
    x = normal(m, k, dtype=dtype, seed=1)
    weights = [packed(n, k, dtype, seed) for seed in range(halves)]
    values, meta = torch.cat([w.values for w in weights]), torch.cat([w.meta for w in weights])
    bias, residual = (normal(n, dtype=dtype), normal(m, n, dtype=dtype)) if halves == 1 else (None, None)
    job = launch.Sp24Job(x=x, n=n, halves=halves, values=values, meta=meta, bias=bias, residual=residual)
    found = launch.portable(job, launch.portable_default(job) | {"SPLITS": splits, "R": 2})
    wanted = naive.linear(x, weights[0], bias, residual) if halves == 1 else naive.swiglu(x, *weights)
    assert found.dtype == dtype and error(found, wanted) < allowed(dtype)
    again = launch.portable(job, launch.portable_default(job) | {"SPLITS": splits, "R": 2})
    assert torch.equal(found, again)


@pytest.mark.parametrize(
    ("m", "n", "k", "dtype", "splits", "halves"), [*CASES, (2, 33, 77, F32, 1, 2), (2, 33, 77, F32, 2, 1)]
)
def test_a_dense_product_equals_the_naive_one(
    m: int, n: int, k: int, dtype: torch.dtype, splits: int, halves: int
) -> None:
    x, weight, up = (normal(*s, dtype=dtype, seed=i) for i, s in enumerate([(m, k), (n, k), (n, k)]))
    bias, residual = (normal(n, dtype=dtype), normal(m, n, dtype=dtype)) if halves == 1 else (None, None)
    job = dense.DenseJob(
        x=x, n=n, halves=halves, weight=weight, up=up if halves == 2 else None, bias=bias, residual=residual
    )
    found = dense.start(job, dense.default(job) | {"SPLITS": splits, "BLOCK_N": 32, "BLOCK_K": 64})
    wanted = (
        dense_naive.linear(x, weight, bias, residual) if halves == 1 else dense_naive.swiglu(x, weight, up)
    )
    assert found.dtype == dtype and error(found, wanted) < allowed(dtype)


@pytest.mark.parametrize(("n", "k"), [(64, 128), (40, 200), (16, 72)])
def test_unpacking_gives_the_very_matrix(n: int, k: int) -> None:
    weight = packed(n, k, BF16)
    dense_form = launch.unpacked(weight)
    assert torch.equal(dense_form, weight.unpack().to_dense())


def permuted(a: int, b: int, selector: int) -> int:
    """PTX `prmt.b32` without sign bits: each nibble of the selector names one of eight bytes."""
    source = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    return int.from_bytes(bytes(source[selector >> 4 * i & 7] for i in range(4)), "little")


def test_the_permutations_decode_every_nibble() -> None:
    """The PTX, executed line by line: four groups a time, each with every valid nibble."""
    words = [0x2222_1111 * (i + 1) & 0xFFFFFFFF for i in range(4)]
    for nibble in decode.VALID:
        nibbles = [nibble, *decode.VALID[:3]]
        registers = {f"${8 + i}": word for i, word in enumerate(words)}
        registers |= {f"${12 + i}": decode.short(one) for i, one in enumerate(nibbles)}
        execute(decode._permutations(), registers)
        for column in range(4):
            for group in range(4):
                found = registers[f"${2 * column + group // 2}"] >> 16 * (group % 2) & 0xFFFF
                kept = nibbles[group] & 3, nibbles[group] >> 2
                value = words[group] >> 16 * kept.index(column) & 0xFFFF if column in kept else 0
                assert found == value


def execute(ptx: str, registers: dict[str, int]) -> None:
    for line in ptx.splitlines()[1:-1]:
        operation, _, operands = line.rstrip(";").partition(" ")
        target, *rest = operands.split(", ")
        values = [registers[name] if name in registers else int(name, 0) for name in rest]
        if operation == "mov.b32":
            registers[target] = values[0]
        elif operation == "mad.lo.u32":
            registers[target] = values[0] * values[1] + values[2]
        else:
            assert operation == "prmt.b32"
            registers[target] = permuted(*values)
