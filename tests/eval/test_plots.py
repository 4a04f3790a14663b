"""Every plot can be drawn, whatever is in it and however its parts are called."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmprune_eval import plots, png, svg
from llmprune_eval.plots import Axis, Chart, Grid, Series

from llmprune.errors import JobError

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="drawing PNGs needs pip install llmprune[plot]"
)


def chart(*series: Series, title: str = "title") -> Chart:
    return Chart("name", title, Axis("bytes"), Axis("perplexity"), series)


def test_points_that_all_lie_on_one_line_get_their_marks():
    """As of runs none of which beats another, without a dense model beside them."""
    drawn = str(svg.draw(chart(Series("the front", ((0.5, 2.0), (1.0, 1.0)), marks=("1", "2")))))
    assert drawn.count('class="mark"') == 2 * 2


@needs_matplotlib
def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match=r"file/png cannot be written \(Not a directory\); give another --png"):
        png.write_all({}, tmp_path / "file" / "png")


@needs_matplotlib
def test_dollars_are_drawn_as_they_are(tmp_path: Path) -> None:
    odd = "$x_{$"
    grid = Grid("grid", odd, Axis(odd), Axis(odd), (0, 1), ((odd, (0.5, None)),))
    plots = {"chart": chart(*[Series(odd, ((1.0, 1.0),), marks=(odd,))] * 2, title=odd), "grid": grid}
    assert all(file.stat().st_size for file in png.write_all(plots, tmp_path / "png"))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_beats(costs):
    on = plots.front(costs)
    assert any(on)
    for one, kept in zip(costs, on, strict=True):
        better = [o for o in costs if o[0] <= one[0] and o[1] <= one[1] and o != one]
        assert kept == (not better)
        assert kept or any(plots.front([o])[0] and on[costs.index(o)] for o in better), "the front beats it"


@given(
    st.floats(1e-6, 1e9),
    st.floats(1e-3, 1e3),
    st.booleans(),
    st.booleans(),
    st.integers(2, 8),
)
def test_ticks_are_few_and_inside(low, factor, log, whole, most):
    axis = Axis("x", whole=whole and not log, log=log)
    ends = plots.span([low, low * (1 + factor)], axis)
    found = plots.ticks(*ends, axis, most)
    assert len(found) <= most + 1
    assert all(ends[0] * (1 - 1e-9) - 1e-9 <= tick <= ends[1] * (1 + 1e-9) + 1e-9 for tick in found)
    assert all(tick == int(tick) for tick in found) or not axis.whole
