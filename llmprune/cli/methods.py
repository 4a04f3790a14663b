"""`llmprune methods`."""

from __future__ import annotations

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import Json


@app.command()
def methods(as_json: Json = False) -> None:
    """List what a recipe can name, with its options: methods, allocations, repairs and so on, and recipes."""
    from llmprune.cli import listing

    if as_json:
        display.print_json(listing.everything())
    else:
        typer.echo(listing.text())
