"""`llmprune push`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import Json


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished checkpoint.")],
    repo: Annotated[str, typer.Argument(help="The repository on the Hub, as name/repo.")],
    private: Annotated[bool, typer.Option("--private", help="Make it one that only you may see.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch to write to (main).")] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of writing to main.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload DIR to the Hub as REPO, with its card and a tag; only what is not there yet is sent."""
    from llmprune.hub import pushing

    display.quiet()
    done = pushing.push(folder, repo, private=private, revision=revision, create_pr=create_pr)
    if as_json:
        return display.print_json(done)
    rows = [
        ("uploaded", f"{done['uploaded']} files, {done['bytes_uploaded']:,} bytes"),
        ("commit", done["commit"]),
        *([("tag", done["tag"])] if done["tag"] else []),
        ("address", done["url"]),
    ]
    display.table(rows, sys.stdout)
