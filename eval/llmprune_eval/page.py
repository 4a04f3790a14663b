"""One HTML page of one run or several: it loads nothing, runs nothing, and follows light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmprune import measured
from llmprune_eval import beside, figures, svg, tables
from llmprune_eval.figures import Quality
from llmprune_eval.markup import Markup, element, joined
from llmprune_eval.plots import Chart, Plot
from llmprune_eval.runs import Measured, Run

STYLE = Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8"))
LONG = 40  # letters from which a cell is broken into lines
COMPARED = (
    "Bytes and speeds are shares of the dense model's. Front: no other run is as good or better both in "
    "quality and in what is named."
)
VIEWPORT = "width=device-width, initial-scale=1"


def page(runs: list[Run], files: Sequence[Measured] = ()) -> str:
    """The whole page, of finished folders and measured .gguf files."""
    models = [*runs, *files]
    title = f"{models[0].name}, pruned" if len(models) == 1 else f"{len(models)} pruned models"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content=VIEWPORT),
        element("title", title),
        element("style", STYLE),
    )
    sections = [*map(_section, runs), *map(_file, files)]
    if len(runs) > 1:
        sections.insert(0, _comparison(runs))
    if files and (chart := figures.by_bytes(models)):
        sections.insert(0, _bytes(models, chart))
    main = element("main", element("h1", title), *sections, _foot(models))
    return f"<!doctype html>\n{element('html', head, element('body', main), lang='en')}\n"


def plots(runs: list[Run], files: Sequence[Measured] = ()) -> dict[str, Plot]:
    """Every plot of the page, by a name that can be a file's."""
    together: list[Plot] = figures.beside(runs) if len(runs) > 1 else []
    if files and (chart := figures.by_bytes([*runs, *files])):
        together = [chart, *together]
    found = {plot.name: plot for plot in together}
    for run in runs:
        found |= {f"{run.number}_{plot.name}": plot for plot in figures.of(run)}
    return found


def _comparison(runs: list[Run]) -> Markup:
    found: Quality = figures.quality(runs)
    head, rows = beside.rows(runs)
    where = head.index("run")
    linked: list[list[object]] = [
        [*row[:where], element("a", row[where], href=f"#run-{run.number}"), *row[where + 1 :]]
        for run, row in zip(runs, rows, strict=True)
    ]
    pictures = element("div", *map(svg.draw, figures.beside(runs)), class_="plots")
    notes = element("p", f"{COMPARED} {found.note}", class_="note")
    return element(
        "section", element("h2", "The runs beside each other"), _table(head, linked), notes, pictures
    )


def _bytes(models: Sequence[Measured], chart: Chart) -> Markup:
    """Folders and files beside each other, by what they weigh."""
    head = ["#", "model", "bytes", "KL, nats", "bits per byte", "prefill", "decode"]
    rows: list[list[object]] = []
    for one in sorted(models, key=lambda model: model.bytes):
        kl = next((f"{both['kl']:.4f}" for both in one.judged().get("agreement", [])), "-")
        bits = next((f"{b:.4f}" for text in one.texts() if (b := text.get("bits_per_byte"))), "-")
        ratios = [measured.ratio(one.bench, f"{part}_tokens_per_s") for part in ("prefill", "decode")]
        speeds = [f"{ratio['ratio']:.2f}x" if ratio else "-" for ratio in ratios]
        link = element("a", one.name, href=f"#run-{one.number}")
        rows.append([str(one.number), link, tables.size(one.bytes), kl, bits, *speeds])
    note = "KL and bits per byte are of the first text that was measured, speeds over the model beside it."
    title, picture = (
        element("h2", "What so many bytes are worth"),
        element("div", svg.draw(chart), class_="plots"),
    )
    return element("section", title, _table(head, rows), element("p", note, class_="note"), picture)


def _section(run: Run) -> Markup:
    return element(
        "section",
        element("h2", f"{run.number}  {run.name}"),
        element("p", tables.sentence(run), class_="lead"),
        *([element("p", run.record.about, class_="note")] if run.record.about else []),
        _pairs("What was done", tables.done(run)),
        *_results(run),
        element("h3", "Layer by layer"),
        element("div", *map(svg.draw, figures.of(run)), class_="plots"),
        _sites(run),
        _pairs("Calibration", tables.calibration(run)),
        id=f"run-{run.number}",
    )


def _file(model: Measured) -> Markup:
    """A .gguf file: its figures alone, for what was done stands in its folder's report."""
    size = tables.size(model.place.stat().st_size)
    return element(
        "section",
        element("h2", f"{model.number}  {model.name}"),
        element("p", f"A file of {size}, as llama.cpp runs it.", class_="lead"),
        *_results(model),
        id=f"run-{model.number}",
    )


def _results(run: Measured) -> list[Markup]:
    """What was measured afterwards, or that nothing was."""
    head = element("h3", "How good it still is")
    texts, scores, speeds = tables.texts(run), tables.scores(run), tables.speeds(run)
    if not (texts or scores or speeds):
        return [head, element("p", "Not measured yet; llmprune eval --save adds it.", class_="note")]
    found = [head]
    if texts:
        found.append(_table(["text", "measured", "dense", "pruned", "ratio", "protocol"], texts))
    if scores:
        found.append(_table(["task", "metric", "dense", "pruned"], scores))
    if speeds:
        found.append(_table(["speed and size", "dense", "pruned", "pruned / dense"], speeds))
        how = run.bench.get("protocol")
        found += [element("p", f"Measured with {how}.", class_="note")] if how else []
    return found


def _sites(run: Run) -> Markup:
    rows = tables.sites(run)
    head = ["layer", "asked", "reached", "shape before", "after", "output error"]
    return element("details", element("summary", f"All {len(rows)} layers"), _table(head, rows))


def _pairs(title: str, rows: list[tuple[str, object]]) -> Markup:
    body = (element("tr", element("th", key, scope="row"), element("td", value)) for key, value in rows)
    table = element("table", element("tbody", *body), class_="pairs")
    return joined(element("h3", title), element("div", table, class_="scroll"))


def _table(head: list[str], rows: list[list[Any]]) -> Markup:
    top = element("tr", *(element("th", key, scope="col") for key in head))
    body = (element("tr", *(_cell(cell) for cell in row)) for row in rows)
    table = element("table", element("thead", top), element("tbody", *body))
    return element("div", table, class_="scroll", tabindex="0")


def _cell(words: object) -> Markup:
    return element(
        "td", words, class_="long" if not isinstance(words, Markup) and len(str(words)) > LONG else None
    )


def _foot(models: Sequence[Measured]) -> Markup:
    places = ", ".join(str(one.place) for one in models)
    return element("footer", f"Written by llmprune report from {places}.")
