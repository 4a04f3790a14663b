"""`llmprune report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import Json


@app.command("report")
def report_(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="What llmprune has written; also .gguf files with figures."),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option(help="A folder for the plots as PNG as well.")] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about pruned models, beside each other where there are several."""
    from llmprune_eval import beside, page
    from llmprune_eval import png as pictures
    from llmprune_eval.runs import read_all, read_files

    display.require_file(out)
    if png is not None:
        pictures.require(png)
    runs = read_all([place for place in models if place.suffix != ".gguf"])
    files = read_files([place for place in models if place.suffix == ".gguf"], len(runs) + 1)
    display.write(out, page.page(runs, files))
    drawn = [] if png is None else pictures.write_all(page.plots(runs, files), png)
    if as_json:
        return display.print_json(beside.summary(runs) | {"page": str(out), "png": list(map(str, drawn))})
    if runs:
        display.grid(*beside.rows(runs), sys.stdout)
    typer.echo(f"written to {out}" + (f", and {len(drawn)} plots to {png}" if drawn else ""))
