"""The benchmarks' scorer finds the likelihoods that lm-eval's own finds."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'llmprune[eval]'")
from benchmarks.shared_beginnings import WIDTH, SharedBeginnings, rows
from lm_eval.models.huggingface import HFLM

CONTEXT = tiny.COMMON["max_position_embeddings"]
tokens = st.integers(4, tiny.VOCABULARY - 1)


@st.composite
def questions(draw: st.DrawFn) -> list[tuple[tuple[str, str], list[int], list[int]]]:
    """Continuations of a few contexts, in any order, as lm-eval hands them to a scorer."""
    contexts = draw(st.lists(st.lists(tokens, min_size=1, max_size=CONTEXT - 12), min_size=1, max_size=6))
    asked = draw(
        st.lists(st.tuples(st.sampled_from(contexts), st.lists(tokens, min_size=1, max_size=12)), min_size=1)
    )
    return [((str(context), str(wanted)), context, wanted) for context, wanted in asked]


@cache
def scorers(family: str) -> tuple[HFLM, SharedBeginnings]:
    made = tiny.model(family)
    return tuple(kind(pretrained=made, tokenizer=tiny.tokenizer()) for kind in (HFLM, SharedBeginnings))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@settings(deadline=None, max_examples=20)
@given(asked=questions())
def test_likelihoods_are_lm_evals(
    family: str, asked: list[tuple[tuple[str, str], list[int], list[int]]]
) -> None:
    theirs, ours = (scorer._loglikelihood_tokens(asked, disable_tqdm=True) for scorer in scorers(family))
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@given(asked=questions())
def test_every_request_stands_in_one_row_beside_its_like(
    asked: list[tuple[tuple[str, str], list[int], list[int]]],
) -> None:
    made = list(rows(asked))
    assert sorted(number for row in made for alike in row for number in alike) == list(range(len(asked)))
    alike = [{tuple(asked[number][1]) for number in one} for row in made for one in row]
    assert all(len(contexts) == 1 for contexts in alike)
    assert len(set().union(*alike)) == len(alike)

    def length(row: list[list[int]]) -> int:
        return sum(len(asked[one[0]][1]) + sum(len(asked[number][2]) - 1 for number in one) for one in row)

    assert all(len(row) == 1 or length(row) <= WIDTH for row in made)
    assert all(length([*row, after[0]]) > WIDTH for row, after in pairwise(made))
