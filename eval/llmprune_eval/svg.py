"""Plots as inline SVG; colours come from the page's style, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable

from llmprune_eval.markup import Markup, element, joined
from llmprune_eval.plots import Axis, Chart, Grid, Plot, Series, span, ticks

WIDE, NARROW = 540, 330  # drawn twice, for desktops and for phones; the style shows one of them
CHART = 294  # height of a chart, labels and all
ALONE = "text{font:12px system-ui,sans-serif;fill:var(--soft)}.label{fill:var(--ink)}"
ALONE += ".mark,.title{fill:var(--ink);font-weight:600}.title{font-size:14px}"
LETTER = 6.6  # mean width of a letter at the size that the style gives text
COLOURS = 8  # the style has so many
DASHES = ("", "6 3", "2 3", "8 3 2 3")
MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -4.6L4.4 3.4H-4.4z",
    "M0 -5L5 0L0 5L-5 0z",
    "M0 4.6L4.4 -3.4H-4.4z",
    "M-4 -1.4h2.6v-2.6h2.8v2.6h2.6v2.8h-2.6v2.6h-2.8v-2.6h-2.6z",
)
Place = Callable[[float], float]


def draw(plot: Plot) -> Markup:
    """A figure: title, the plot at both widths, and legend."""
    picture = _grid if isinstance(plot, Grid) else _chart
    legend = _scale(plot) if isinstance(plot, Grid) else _legend(plot)
    drawings = (picture(plot, WIDE, "wide"), picture(plot, NARROW, "narrow"))  # type: ignore[arg-type]
    return element("figure", element("figcaption", plot.title), *drawings, legend)


def alone(plot: Chart, style: str) -> Markup:
    """A picture that needs no page around it: title, plot and legend, in a style's colours."""
    drawing, entries = _chart(plot, WIDE, "wide"), list(enumerate(plot.series))
    top, line = 30, 22
    size = WIDE, top + CHART + line * len(entries) + 8
    legend = [
        element(
            "g",
            _key(n, series),
            _text(36, 11, series.label),
            transform=f"translate(0 {top + CHART + line * n})",
        )
        for n, series in entries
    ]
    return element(
        "svg",
        element("style", Markup(style + ALONE)),
        _text(0, 14, plot.title, class_="title"),
        element("svg", drawing, y=top, width=WIDE, height=CHART),
        *legend,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"-8 0 {size[0] + 16} {size[1]}",
        width=size[0],
        role="img",
        aria_label=plot.title,
    )


def _svg(plot: Plot, size: tuple[float, float], class_: str, *children: Markup) -> Markup:
    box = f"0 0 {size[0]:g} {size[1]:g}"
    return element("svg", *children, viewBox=box, class_=class_, role="img", aria_label=plot.title)


def _text(x: float, y: float, words: str, anchor: str = "start", class_: str | None = None) -> Markup:
    return element("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", **{key: f"{value:.1f}" for key, value in ends.items()}, class_=class_)


def _place(axis: Axis, ends: tuple[float, float], to: tuple[float, float]) -> Place:
    """Where on the paper a value of an axis lies."""
    scale: Callable[[float], float] = math.log if axis.log else float
    low, high = map(scale, ends)
    return lambda value: to[0] + (scale(value) - low) / (high - low) * (to[1] - to[0])


def _chart(plot: Chart, width: int, class_: str) -> Markup:
    across = [x for series in plot.series for x, _ in series.points]
    ends = span(across, plot.x), span([y for series in plot.series for y in series.heights], plot.y)
    marks = ticks(*ends[0], plot.x, width // 70), ticks(*ends[1], plot.y)
    left = 10 + LETTER * max(len(plot.y.show(tick)) for tick in marks[1])
    top, bottom, right = 26.0, CHART - 44.0, width - 12.0
    x, y = _place(plot.x, ends[0], (left, right)), _place(plot.y, ends[1], (bottom, top))
    frame = [_line(left, y(tick), right, y(tick), "rule") for tick in marks[1]]
    frame += [_text(left - 6, y(tick) + 4, plot.y.show(tick), "end") for tick in marks[1]]
    frame += [_line(x(tick), bottom, x(tick), bottom + 4, "axis") for tick in marks[0]]
    frame += [_text(x(tick), bottom + 18, plot.x.show(tick), "middle") for tick in marks[0]]
    frame += [_line(left, bottom, right, bottom, "axis")]
    frame += [
        _text(0, 12, plot.y.label, class_="label"),
        _text(right, bottom + 36, plot.x.label, "end", "label"),
    ]
    drawn = [_series(number, series, x, y) for number, series in enumerate(plot.series)]
    return _svg(plot, (width, bottom + 44), class_, *frame, *drawn, *_marks(plot, x, y, (left, right)))


def _series(number: int, series: Series, x: Place, y: Place) -> Markup:
    at = [(f"{x(a):.1f}", f"{y(b):.1f}") for a, b in series.points]
    path = "M" + "L".join(f"{a} {b}" for a, b in at)
    line = element("path", d=path, class_="line", stroke_dasharray=_dash(number)) if series.line else None
    markers = [_marker(number, series, f"translate({a} {b})") for a, b in at[:: series.spacing]]
    bars = [
        element("path", d=f"M{x(a):.1f} {y(low):.1f}V{y(high):.1f}", class_="line")
        for (a, _), (low, high) in zip(series.points, series.ends, strict=False)
    ]
    return element("g", line, *bars, *markers, class_=f"s{number % COLOURS}")


def _dash(number: int) -> str | None:
    return DASHES[number % len(DASHES)] or None


def _marker(number: int, series: Series, transform: str) -> Markup:
    shape = MARKERS[number % len(MARKERS)]
    return element("path", d=shape, transform=transform, class_="hollow" if series.hollow else "full")


def _marks(plot: Chart, x: Place, y: Place, sides: tuple[float, float]) -> list[Markup]:
    """What is written at points, beside each other where they would lie on each other."""
    taken = [(x(a), y(b)) for series in plot.series for a, b in series.points if series.marks]
    written = []
    for series in plot.series:
        for (a, b), mark in zip(series.points, series.marks, strict=False):
            here = x(a), y(b)
            shifts = ((0, -9), (0, 19), (11, 4), (-11, 4), (12, -9), (-12, -9), (12, 17), (-12, 17), (0, -23))
            spots = [(here[0] + dx, here[1] + dy) for dx, dy in shifts]
            inside = [spot for spot in spots if sides[0] < spot[0] < sides[1]] or spots
            spot = max(inside, key=lambda s: min(12.0, _clear(s, taken)))
            taken.append((spot[0], spot[1] - 4))
            written.append(_text(*spot, mark, "middle", "mark"))
    return written


def _clear(spot: tuple[float, float], taken: list[tuple[float, float]]) -> float:
    """How far the middle of a short text is from the nearest thing drawn so far."""
    return min(max(abs(spot[0] - a) / 1.2, abs(spot[1] - 4 - b) * 1.1) for a, b in taken)


def _legend(plot: Chart) -> Markup | None:
    if len(plot.series) == 1 and not plot.series[0].marks:
        return None
    return element("ul", *(_entry(n, series) for n, series in enumerate(plot.series)), class_="legend")


def _key(number: int, series: Series) -> Markup:
    """The line and the marker of a series, 28 wide."""
    line = (
        element("path", d="M1 7H27", class_="line", stroke_dasharray=_dash(number)) if series.line else None
    )
    marker = _marker(number, series, "translate(14 7)")
    return element("g", line, marker, class_=f"s{number % COLOURS}")


def _entry(number: int, series: Series) -> Markup:
    key = element("svg", _key(number, series), viewBox="0 0 28 14", class_="key", aria_hidden="true")
    return element("li", key, series.label)


def _grid(plot: Grid, width: int, class_: str) -> Markup:
    left = 8 + LETTER * max(len(label) for label, _ in plot.rows)
    left = min(left, width * 0.45)
    cell, height, top = (width - left - 4) / len(plot.columns), 24, 4
    bottom = top + height * len(plot.rows)
    drawn = [
        _text(left - 6, top + height * (row + 0.68), label, "end") for row, (label, _) in enumerate(plot.rows)
    ]
    for row, (label, values) in enumerate(plot.rows):
        for column, value in enumerate(values):
            said = f"{label}, {plot.x.label} {plot.columns[column]}"
            box = (left + cell * column, top + height * row, cell, height)
            drawn.append(_cell(plot, value, box, said))
    every = math.ceil(LETTER * (1 + len(str(plot.columns[-1]))) / cell)
    drawn += [
        _text(left + cell * (at + 0.5), bottom + 16, str(column), "middle")
        for at, column in enumerate(plot.columns)
        if at % every == 0
    ]
    drawn.append(_text(width - 4, bottom + 34, plot.x.label, "end", "label"))
    return _svg(plot, (width, bottom + 42), class_, *drawn)


def _cell(plot: Grid, value: float | None, box: tuple[float, float, float, float], said: str) -> Markup:
    x, y, width, height = box
    gap = 1 if width > 6 else 0.2
    place = {"x": x + gap / 2, "y": y + 0.5, "width": width - gap, "height": height - 1}
    sides = {key: f"{number:.2f}" for key, number in place.items()}
    if value is None:
        return element("rect", element("title", f"{said}: nothing"), **sides, class_="none")
    strength = value / plot.top
    title = element("title", f"{said}: {plot.value.show(value)}")
    colour = f"{0.06 + 0.94 * max(0.0, strength):.3f}"
    drawn = element("rect", title, **sides, class_="heat", fill_opacity=colour)
    if width < 4 + LETTER * 3:
        return drawn
    number = f"{100 * value:.0f}" if plot.value.percent else f"{value:.2f}".lstrip("0")
    on = "on" if strength > 0.5 else "off"
    return joined(drawn, _text(x + width / 2, y + height * 0.68, number, "middle", on))


def _scale(plot: Grid) -> Markup:
    """The colours from nothing to the largest value."""
    steps = [
        element(
            "rect", x=20 * n, y=0, width=20, height=12, class_="heat", fill_opacity=f"{0.06 + 0.235 * n:.3f}"
        )
        for n in range(5)
    ]
    key = element("svg", *steps, viewBox="0 0 100 12", class_="scale", aria_hidden="true")
    ends = plot.value.show(0), plot.value.show(plot.top)
    words = element("span", f"{plot.value.label}: ", ends[0])
    return element("p", words, key, element("span", ends[1]), class_="legend")
