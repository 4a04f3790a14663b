"""Plots hold the reports' own numbers, and compare what was measured alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llmprune_eval import beside, figures, page, plots, runs, tables
from llmprune_eval.runs import read_all, read_files

from llmprune.report import FILE as REPORT
from tests.eval.pages import Reader, copied, folders, judged, recovered

__all__ = ["folders"]


def test_folders_and_files_are_told_by_their_bytes(folders, tmp_path):
    close = [{"dataset": "builtin", "kl": kl, "top1": 0.9, "predictions": 640} for kl in (0.5, 0.02)]
    folder = copied(folders["cut"], tmp_path / "cut", evaluation=judged(12.0, agreement=close[:1]))
    file = tmp_path / "cut-q8_0.gguf"
    file.write_bytes(bytes(2_000_000))
    runs.beside(file).write_text(json.dumps(judged(12.5, 1.25, agreement=close[1:])))
    both = [*read_all([folder]), *read_files([file], 2)]
    chart = figures.by_bytes(both)
    told = json.loads((folder / REPORT).read_text())["totals"]["bytes_after"]
    points = [(one.label, one.points, one.marks) for one in chart.series]
    assert points == [
        ("folders", ((told / 1e6, 0.5),), ("1",)),
        (".gguf files", ((2.0, 0.02),), ("2",)),
    ]
    assert chart.y.log  # one is twenty-five times the other
    words = Reader(page.page(both[:1], both[1:])).words
    assert "What so many bytes are worth" in words and "Divergence on builtin" in words
    assert {"bytes"} <= page.plots(both[:1], both[1:]).keys()
    assert "What so many bytes" not in Reader(page.page(both[:1])).words  # of folders alone, as before
    assert figures.by_bytes(both[:1]) is None
    other = [{**close[1], "predictions": 320}]
    runs.beside(file).write_text(json.dumps(judged(12.5, 1.25, agreement=other)))
    assert figures.by_bytes([both[0], *read_files([file], 2)]) is None  # of other windows


def test_every_run_has_the_plots_of_what_was_done_to_it(folders):
    drawn = {
        name: [plot.name for plot in figures.of(*read_all([folder]))] for name, folder in folders.items()
    }
    assert drawn == {
        "masked": ["sparsity", "error"],
        "cut": ["sparsity", "error"],
        "untexted": ["sparsity"],
        "learned": ["sparsity", "error", "learning"],
        "recovered": ["sparsity", "error", "recovery_errors"],
    }


def test_a_plot_holds_the_report_s_own_numbers(folders):
    (run,) = read_all([folders["cut"]])
    grid, errors = figures.of(run)
    assert isinstance(grid, plots.Grid) and isinstance(errors, plots.Chart)
    rows, curves = dict(grid.rows), {series.label: dict(series.points) for series in errors.series}
    for site in run.record.sites:
        assert rows[site.kind][grid.columns.index(site.block)] == pytest.approx(site.reached)
        assert curves[site.kind][site.block] == pytest.approx(site.error)


def test_many_kinds_are_put_together(folders):
    (run,) = read_all([folders["masked"]])
    (site, *_) = run.record.sites
    experts = [site.model_copy(update={"kind": f"mlp.experts.{n}.up_proj"}) for n in range(20)]
    assert list(figures.kinds_of(experts)) == ["mlp.experts.*.up_proj"]
    others = [site.model_copy(update={"kind": f"part.{letter}"}) for letter in "abcdefghijkl"]
    assert list(figures.kinds_of(others)) == ["part"]


def test_a_loss_curve_is_drawn_and_a_long_one_is_averaged(folders, tmp_path):
    losses = [float(n) for n in range(1000)]
    folder = copied(folders["cut"], tmp_path / "a", recovery=recovered("lora", losses))
    (run,) = read_all([folder])
    (chart,) = (plot for plot in figures.of(run) if plot.name == "recovery")
    assert isinstance(chart, plots.Chart)
    points = chart.series[0].points
    assert len(points) <= plots.MOST_POINTS and points[0] == (2.5, 1.5)
    Reader(page.page([run]))


def test_runs_are_compared_by_perplexity_where_it_was_measured_alike(folders, tmp_path):
    a = copied(folders["cut"], tmp_path / "a", evaluation=judged(20.0, 1.4))
    b = copied(folders["masked"], tmp_path / "b", evaluation=judged(15.0, 1.2))
    c = copied(folders["masked"], tmp_path / "c", evaluation=judged(16.0, 1.1))
    runs = read_all([a, b, c, folders["untexted"]])
    found = figures.quality(runs)
    assert found.values == {1: 20.0, 2: 15.0, 3: 16.0} and found.dense == 10.0
    assert "left out: untexted" in found.note and "8 windows of 64" in found.note
    assert [row["front"] for row in beside.compared(runs)] == [
        ["size", "decode", "prefill"],
        ["size", "decode", "prefill"],
        [],
        [],
    ]
    assert [plot.name for plot in figures.beside(runs)] == ["pareto_size", "pareto_decode", "pareto_prefill"]


def test_without_perplexity_the_output_error_stands_in_and_the_page_says_so(folders):
    runs = read_all([folders["cut"], folders["masked"], folders["untexted"]])
    found = figures.quality(runs)
    assert found.values.keys() == {1, 2}
    assert "No perplexity is in these reports" in Reader(page.page(runs)).words


def test_a_search_shows_its_budgets_and_how_it_went(folders: dict[str, Path], tmp_path: Path) -> None:
    tried = [{"allocation": {"name": "uniform"}, "kl": 0.5}, {"allocation": {"name": "search"}, "kl": 0.4}]
    steps = [{"round": r, "generation": g, "kl": 0.9 / (r + g)} for r, g in ((1, 0), (1, 1), (2, 1))]
    said = "block 3 loses 90 % where 30 % was asked"
    folder = copied(folders["cut"], tmp_path / "a", budgets=tried, searched=steps, warnings=[said])
    [run] = read_all([folder])
    rows = [value for key, value in tables.done(run) if key in ("budget tried", "warning")]
    assert rows == ["uniform: 0.5000 nats of KL divergence", "search: 0.4000 nats of KL divergence", said]
    chart = next(plot for plot in figures.of(run) if plot.name == "search")
    assert [len(series.points) for series in chart.series] == [2, 1]
    assert "generation" in page.page([run])
