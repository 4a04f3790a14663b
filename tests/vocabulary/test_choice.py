"""The order in which tokens are wanted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmprune.vocabulary.choice import closed, ordered

ATOMS = 3


@st.composite
def grammars(draw: st.DrawFn) -> dict[int, tuple[int, ...]]:
    """Tokens made of earlier ones."""
    parts: dict[int, tuple[int, ...]] = {atom: () for atom in range(ATOMS)}
    for token in range(ATOMS, ATOMS + draw(st.integers(0, 10))):
        earlier = st.integers(0, token - 1)
        parts[token] = draw(st.tuples(earlier, earlier))
    return parts


@given(grammars(), st.data())
def test_every_beginning_of_the_order_is_closed(
    parts: dict[int, tuple[int, ...]], data: st.DataObject
) -> None:
    rows = len(parts) + 2  # two rows that are no token's
    uses = data.draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows))
    needed = closed(data.draw(st.sets(st.sampled_from(sorted(parts)))), parts)
    order = ordered(uses, parts, {token: token for token in parts if parts[token]}, needed)
    assert sorted(order) == list(range(rows))
    assert set(order[: len(needed)]) == needed
    assert set(order[-2:]) == {rows - 2, rows - 1}, "rows that are no token's go first"
    for count in range(len(needed), rows + 1):
        assert closed(order[:count], parts) == set(order[:count])


def test_the_least_used_token_goes_first_and_its_uses_are_its_parts() -> None:
    parts = {0: (), 1: (), 2: (0, 1), 3: (2, 1), 4: (1, 1)}
    # 3 goes first and leaves its 2 uses to 2, which is then used more often than 4.
    order = ordered([0, 0, 2, 2, 3], parts, {2: 0, 3: 1, 4: 2}, {0, 1})
    assert order == [0, 1, 2, 4, 3]


def test_without_a_text_the_last_merge_goes_first() -> None:
    parts = {0: (), 1: (), 2: (0, 1), 3: (1, 0), 4: (0, 0)}
    assert ordered([0] * 5, parts, {4: 0, 2: 1, 3: 2}, {0, 1}) == [0, 1, 4, 2, 3]
