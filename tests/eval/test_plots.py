"""Every plot can be drawn, whatever is in it and however its parts are called."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from llmprune_eval import png, svg
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
