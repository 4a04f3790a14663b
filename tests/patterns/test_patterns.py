"""Patterns drop exactly what they say, wherever the scores lie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmprune.patterns import base as patterns
from llmprune.patterns.n_of_m import NofM
from llmprune.patterns.unstructured import Unstructured


@given(st.floats(0, 0.999), st.integers(1, 9), st.integers(1, 33), st.sampled_from(["row", "matrix"]))
def test_unstructured_drops_the_nearest_whole_number(sparsity, rows, columns, compete):
    keep = Unstructured(compete).keep(torch.rand(rows, columns), sparsity)
    if compete == "row":
        assert (~keep).sum(1).tolist() == [round(sparsity * columns)] * rows
    else:
        assert int((~keep).sum()) == round(sparsity * rows * columns)


@given(st.integers(1, 7), st.integers(1, 8), st.integers(1, 6), st.integers(1, 6))
def test_n_of_every_m_are_the_largest_of_their_group(n, more, rows, groups):
    m = n + more
    score = torch.rand(rows, groups * m)
    keep = NofM(n, m).keep(score, 0.123)
    kept, lost = score.masked_fill(~keep, 2.0), score.masked_fill(keep, -1.0)
    assert (keep.reshape(rows, groups, m).sum(-1) == n).all()
    assert (kept.reshape(rows, groups, m).amin(-1) >= lost.reshape(rows, groups, m).amax(-1)).all()


def test_all_equal_groups_lose_their_first_members():
    keep = NofM(2, 4).keep(torch.ones(1, 8), 0.5)
    assert keep.tolist() == [[False, False, True, True] * 2]


@pytest.mark.parametrize("text", ["2:4", "2of4"])
def test_a_pattern_is_read_from_its_word(text):
    assert patterns.build(text, {}) == NofM(2, 4)
    assert str(patterns.build(text, {})) == "2:4"
    assert patterns.build("unstructured", {}) == Unstructured()


@pytest.mark.parametrize("text", ["4:4", "5:4", "0:4", "2:", "two:four", "", "unit"])
def test_a_word_that_names_no_pattern_is_refused(text):
    with pytest.raises(ValueError, match=r"pattern|N must be"):
        patterns.build(text, {})
