"""Plots as PNG files, drawn by matplotlib, for papers and slides."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from llmprune.errors import JobError, RequestError
from llmprune_eval.plots import Axis, Chart, Grid, Plot

COLOURS = ("#0b63b5", "#c2560c", "#0f7f5f", "#a8327d", "#6b5bd2", "#8a6d00", "#0d8ca6", "#5a6472")
NUMBERED = 12  # columns up to which cells hold their numbers
MARKERS, DASHES = "os^DvP", ("-", "--", ":", "-.")


def require(folder: Path) -> None:
    """Refuse before anything is written what cannot be drawn.

    Raises:
        RequestError: matplotlib is missing, or the folder cannot be made.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RequestError("png", "drawing PNGs needs matplotlib; run pip install llmprune[plot]") from error
    if folder.is_file() or not folder.absolute().parent.is_dir():
        raise RequestError("png", f"{folder} cannot be a folder here; name one whose parent exists")


def write_all(plots: dict[str, Plot], folder: Path) -> list[Path]:
    """Draw every plot into a file of its name.

    Raises:
        JobError: they cannot be written.
    """
    files = [folder / f"{name}.png" for name in plots]
    try:
        folder.mkdir(exist_ok=True)
        for plot, file in zip(plots.values(), files, strict=True):
            write(plot, file)
    except OSError as error:
        raise JobError(f"{folder} cannot be written ({error.strerror}); give another --png") from error
    return files


def write(plot: Plot, file: Path) -> None:
    """Draw one plot into a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_plain(plot.title), fontsize=10, loc="left")
    if isinstance(plot, Grid):
        _grid(plot, figure, axes)
    else:
        _chart(plot, axes)
        figure.supxlabel(textwrap.fill(_plain(plot.note), 110), fontsize=6, x=0.02, ha="left")
    figure.savefig(file, metadata={"Software": None})


def _chart(plot: Chart, axes: Any) -> None:
    for number, series in enumerate(plot.series):
        xs, ys = zip(*series.points, strict=True)
        colour = COLOURS[number % len(COLOURS)]
        style = {"marker": MARKERS[number % len(MARKERS)], "markevery": series.spacing}
        line = DASHES[number % len(DASHES)] if series.line else "none"
        fill = "none" if series.hollow else colour
        label = _plain(series.label)
        axes.plot(xs, ys, color=colour, linestyle=line, label=label, markerfacecolor=fill, **style)
        if series.ends:
            axes.vlines(xs, *zip(*series.ends, strict=True), color=colour)
    axes.set_xscale("log" if plot.x.log else "linear")
    axes.set_yscale("log" if plot.y.log else "linear")
    _axis(axes.xaxis, plot.x)
    _axis(axes.yaxis, plot.y)
    _marks(plot, axes)
    axes.grid(axis="y", alpha=0.3)
    if len(plot.series) > 1:
        axes.legend(fontsize=7)


def _marks(plot: Chart, axes: Any) -> None:
    """What is written at points, on the side that has more room."""
    middle = sum(axes.get_xlim()) / 2
    for series in plot.series:
        for at, mark in zip(series.points, series.marks, strict=False):
            right = at[0] > middle
            shift, side = ((-7, -3), "right") if right else ((7, -3), "left")
            axes.annotate(_plain(mark), at, xytext=shift, textcoords="offset points", ha=side, fontsize=8)


def _grid(plot: Grid, figure: Any, axes: Any) -> None:
    values = [[float("nan") if v is None else v for v in row] for _, row in plot.rows]
    edges = [[n - 0.5 for n in range(count + 1)] for count in (len(plot.columns), len(plot.rows))]
    image = axes.pcolormesh(
        *edges, values, cmap="Blues", vmin=0, vmax=plot.top, edgecolors="w", linewidth=0.5
    )
    axes.invert_yaxis()
    for row, (_, line) in enumerate(plot.rows if len(plot.columns) <= NUMBERED else ()):
        for column, value in enumerate(line):
            shown = "" if value is None else plot.value.show(round(value, 2))
            colour = "w" if value and value > plot.top / 2 else "k"
            axes.text(column, row, shown, ha="center", va="center", color=colour, fontsize=7)
    axes.set_yticks(range(len(plot.rows)), [_plain(label) for label, _ in plot.rows], fontsize=8)
    every = -(-len(plot.columns) // 16)
    axes.set_xticks(range(0, len(plot.columns), every), plot.columns[::every])
    axes.set_xlabel(_plain(plot.x.label))
    _axis(figure.colorbar(image).ax.yaxis, plot.value)


def _axis(axis: Any, described: Axis) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis.set_label_text(_plain(described.label))
    if described.percent:
        axis.set_major_formatter(PercentFormatter(1.0))
    if described.whole:
        axis.set_major_locator(MaxNLocator(integer=True))


def _plain(words: str) -> str:
    """Dollars as they are: matplotlib would read a formula between two of them."""
    return words.replace("$", r"\$")
