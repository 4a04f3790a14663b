"""`llmprune methods`."""

from __future__ import annotations

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import Json


@app.command()
def methods(as_json: Json = False) -> None:
    """Say which recipe to take for what; list methods, allocations, repairs and so on, with their options."""
    from llmprune.cli import listing

    if as_json:
        display.print_json(listing.everything())
    else:
        typer.echo(listing.text())
