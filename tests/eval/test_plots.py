"""Every plot can be drawn, whatever is in it and however its parts are called."""

from __future__ import annotations

from llmprune_eval import svg
from llmprune_eval.plots import Axis, Chart, Series


def chart(*series: Series, title: str = "title") -> Chart:
    return Chart("name", title, Axis("bytes"), Axis("perplexity"), series)


def test_points_that_all_lie_on_one_line_get_their_marks():
    """As of runs none of which beats another, without a dense model beside them."""
    drawn = str(svg.draw(chart(Series("the front", ((0.5, 2.0), (1.0, 1.0)), marks=("1", "2")))))
    assert drawn.count('class="mark"') == 2 * 2
