"""Sparse formats: every pattern survives every conversion, bit for bit."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llmprune_kernels.errors import KernelError
from llmprune_kernels.formats.bitmask import Bitmask
from llmprune_kernels.formats.fragments import Fragments, as_fragments
from llmprune_kernels.formats.sp24 import Sp24
from llmprune_kernels.sp24.emulate import mma_sp
from torch import Tensor
from torch.sparse import _semi_structured_conversions as torch_conversions

from tests.kernels.matrices import sparse

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
DTYPES = (*FLOATS, torch.int8, torch.float8_e4m3fn)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pair_of_kept_columns_survives(dtype: torch.dtype) -> None:
    pairs = [*combinations(range(4), 2)]
    dense = torch.zeros(6, 8)
    for row, (first, second) in enumerate(pairs):
        dense[row, [first, second, 4 + first, 4 + second]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    packed = Sp24.from_dense(dense.to(dtype))
    assert packed.nibbles()[:, 0].tolist() == [first | second << 2 for first, second in pairs]
    assert packed.values[:, :2].float().tolist() == [[1.0, 2.0]] * 6
    assert same(packed.to_dense(), dense.to(dtype))


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 2), st.sampled_from(DTYPES), st.integers(0, 99))
def test_packing_loses_nothing(rows: int, eights: int, kept: int, dtype: torch.dtype, seed: int) -> None:
    dense = sparse(rows, 8 * eights, dtype, seed, kept)
    packed = Sp24.from_dense(dense)
    assert packed.values.numel() * 2 == dense.numel() and packed.meta.numel() * 8 == dense.numel()
    assert same(packed.to_dense(), dense)
    assert same(Sp24.from_bitmask(*packed.to_bitmask()).to_dense(), dense)
    padded = packed.padded(16, 64)
    assert padded.shape == (-(-rows // 16) * 16, -(-8 * eights // 64) * 64)
    assert same(padded.to_dense()[:rows, : 8 * eights], dense)
    assert padded.to_dense().float().count_nonzero() == dense.float().count_nonzero()


@given(st.integers(1, 40), st.integers(1, 20), st.sampled_from(FLOATS[:2]), st.integers(0, 99))
def test_fragments_lose_nothing(rows: int, eights: int, dtype: torch.dtype, seed: int) -> None:
    packed = Sp24.from_dense(sparse(rows, 8 * eights, dtype, seed))
    back = Fragments.pack(packed).unpack()
    assert same(back.values, packed.values) and same(back.meta, packed.meta)


def test_fragments_take_1_125_bytes_a_weight() -> None:
    packed = Fragments.pack(Sp24.from_dense(sparse(64, 128, torch.bfloat16)))
    assert 4 * (packed.values.numel() + packed.meta.numel()) == 64 * 128 * 9 / 8


def test_a_zero_that_was_kept_stays_where_it_was() -> None:
    dense = torch.zeros(1, 8)
    mask = torch.tensor([[0, 1, 0, 1, 1, 1, 0, 0]], dtype=torch.bool)
    packed = Sp24.from_dense(dense, mask)
    assert torch.equal(packed.mask(), mask)
    assert torch.equal(Sp24.from_bitmask(*packed.to_bitmask()).mask(), mask)
    assert torch.equal(Fragments.pack(Sp24.from_dense(dense.half(), mask)).unpack().mask(), mask)


def test_three_of_four_are_refused_by_row_and_group() -> None:
    dense = torch.zeros(3, 16)
    dense[1, 8:11] = 1
    with pytest.raises(KernelError, match=r"row 1 has 3 non-zeros in group 2 \(columns 8 to 11\)"):
        Sp24.from_dense(dense)
    with pytest.raises(KernelError, match="multiple of 8"):
        Sp24.from_dense(torch.zeros(3, 12))
    with pytest.raises(KernelError, match="row 0 keeps 1 values in group 1"):
        Sp24.from_bitmask(torch.ones(1, 4), torch.tensor([[0b00010011]], dtype=torch.uint8))
    with pytest.raises(KernelError, match=r"float16 or bfloat16, not torch\.float32"):
        Fragments.pack(Sp24.from_dense(sparse(16, 64)))


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8], ids=str)
def test_metadata_equal_those_of_torch_for_cutlass(dtype: torch.dtype, kept: int) -> None:
    dense = sparse(64, 256, dtype, kept=kept)
    values, meta = torch_conversions.sparse_semi_structured_from_dense_cutlass(dense)
    ours = Sp24.from_dense(dense).to_cutlass()
    assert same(ours[0], values) and same(ours[1], meta)
    assert same(Sp24.from_cutlass(values, meta).to_dense(), dense)


def test_what_cutlass_cannot_hold_is_refused() -> None:
    with pytest.raises(KernelError, match=r"not torch\.float32"):
        Sp24.from_dense(sparse(32, 64)).to_cutlass()
    with pytest.raises(KernelError, match="rows in multiples of 32"):
        Sp24.from_dense(sparse(16, 64, torch.half)).to_cutlass()


@given(st.integers(0, 99), st.sampled_from(FLOATS[:2]))
def test_the_tensor_core_reads_fragments_as_the_matrix(seed: int, dtype: torch.dtype) -> None:
    """The instruction, emulated from its description, computes the product from our bytes."""
    weight, x = sparse(16, 64, dtype, seed), torch.randint(-9, 9, (8, 64)).to(dtype)
    packed = Fragments.pack(Sp24.from_dense(weight))
    lane = torch.arange(32)
    total = torch.zeros(32, 4)
    for step in range(2):
        a = packed.values[0, step].contiguous().view(dtype)
        b = torch.stack(
            [x[lane // 4, 32 * step + 2 * (lane % 4) + 8 * (i // 2) + i % 2] for i in range(8)], 1
        )
        total = mma_sp(a, b, total, packed.meta[0, 0], step)
    product = torch.zeros(16, 8)
    for i in range(4):
        product[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2] = total[:, i]
    assert torch.equal(product, weight.float() @ x.float().T)


def test_tensors_of_another_matrix_are_refused() -> None:
    packed = Fragments.pack(Sp24.from_dense(sparse(16, 64, torch.half)))
    with pytest.raises(KernelError, match=r"of 32 x 64 has values \[2, 2, 32, 4\]"):
        as_fragments(packed.values, packed.meta, 32, 64, torch.half)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 4), st.sampled_from(DTYPES), st.integers(0, 99))
def test_bitmask_rows_lose_nothing(rows: int, words: int, kept: int, dtype: torch.dtype, seed: int) -> None:
    dense = sparse(rows, 32 * words, dtype, seed, kept)
    packed = Bitmask.from_dense(dense)
    assert len(packed.values) == int(dense.float().count_nonzero()) == int(packed.starts[-1])
    assert same(packed.to_dense(), dense)


def test_bitmask_rows_keep_zeros_that_were_kept_and_refuse_odd_widths() -> None:
    mask = torch.rand(4, 64) < 0.5
    packed = Bitmask.from_dense(torch.zeros(4, 64), mask)
    assert torch.equal(packed.kept(), mask)
    with pytest.raises(KernelError, match="multiple of 32"):
        Bitmask.from_dense(torch.zeros(4, 40))


@pytest.mark.parametrize("form", [Sp24, Bitmask])
def test_a_mask_of_another_shape_is_refused(form: type[Sp24 | Bitmask]) -> None:
    with pytest.raises(KernelError, match=r"the mask has shape \[4, 32\], and the matrix \[4, 64\]"):
        form.from_dense(sparse(4, 64), torch.ones(4, 32, dtype=torch.bool))


@pytest.mark.parametrize("form", [Sp24, Bitmask])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64], ids=str)
def test_values_of_eight_bytes_and_empty_matrices_are_refused(
    form: type[Sp24 | Bitmask], dtype: torch.dtype
) -> None:
    with pytest.raises(KernelError, match=f"1, 2 or 4 bytes, not {dtype}"):
        form.from_dense(torch.zeros(8, 32, dtype=dtype))
    with pytest.raises(KernelError, match=r"no empty matrix, and this one has shape \[0, 32\]"):
        form.from_dense(torch.zeros(0, 32))


def test_masks_and_metadata_of_another_matrix_are_refused() -> None:
    packed = Sp24.from_dense(sparse(32, 64, torch.half))
    values, mask = packed.to_bitmask()
    with pytest.raises(KernelError, match=r"found 1024 values and a mask \[32, 7\]"):
        Sp24.from_bitmask(values, mask[:, :7])
    values, meta = packed.to_cutlass()
    with pytest.raises(KernelError, match=r"are torch\.int16 \[32, 4\], not torch\.int16 \[32, 3\]"):
        Sp24.from_cutlass(values, meta[:, :3])
    with pytest.raises(KernelError, match="rows in multiples of 32"):
        Sp24.from_cutlass(values[:8], meta[:8])
