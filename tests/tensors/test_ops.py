"""The heavy operations against their few-line definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmprune.tensors import ops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def by_sorting(row: torch.Tensor, drops: int) -> torch.Tensor:
    keep = torch.ones(len(row), dtype=torch.bool)
    keep[row.argsort(stable=True)[:drops]] = False
    return keep


@given(
    st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.0078125, -3.0, 1e-30]), min_size=1, max_size=40),
    st.sampled_from(DTYPES),
    st.data(),
)
def test_exactly_so_many_are_dropped_and_of_equals_the_leftmost(values, dtype, data):
    score = torch.tensor(values, dtype=dtype)
    drops = data.draw(st.integers(0, len(values)))
    expected = by_sorting(score, drops)
    assert torch.equal(ops.keep_largest(score[None], drops)[0], expected)
    assert torch.equal(ops.keep_largest_of_all(score[None], drops)[0], expected)
    assert int((~expected).sum()) == drops


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_large_matrix_compete_among_themselves(dtype, monkeypatch):
    monkeypatch.setattr(ops, "CHUNK", 300)  # several pieces, the last one shorter
    score = torch.randn(37, 64).to(dtype)
    expected = torch.stack([by_sorting(row, 19) for row in score])
    assert torch.equal(ops.keep_largest(score, 19), expected)
    assert torch.equal(ops.keep_largest_of_all(score, 999).flatten(), by_sorting(score.flatten(), 999))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60), st.data())
def test_the_kth_smallest_of_pieces_is_that_of_the_sorted_whole(values, data):
    k = data.draw(st.integers(1, len(values)))
    cut = data.draw(st.integers(0, len(values)))
    pieces = [torch.tensor(values[:cut]), torch.tensor(values[cut:])]
    assert (
        ops.kth_smallest(lambda: (p for p in pieces if len(p)), k)
        == torch.tensor(values).sort().values[k - 1]
    )


@pytest.mark.parametrize("features", [1, 3, 4, 97])
def test_the_gram_matrix_is_symmetric_and_the_sum_over_batches(features):
    x = torch.randn(50, features)
    total = torch.zeros(features, features)
    ops.add_gram(total, x[:20])
    ops.add_gram(total, x[20:].double())
    whole = ops.mirrored(total)
    assert torch.equal(whole, whole.T)
    torch.testing.assert_close(whole, x.T @ x)
