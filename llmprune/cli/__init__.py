"""`llmprune COMMAND`: words into calls, and their outcomes into words.

Every command imports what it needs itself, so that `llmprune --help` answers at once. Results go to stdout,
news and errors to stderr; with --json, stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from llmprune import ranks
from llmprune.cli import (  # noqa: F401 - each adds its command
    bench,
    demo,
    evaluate,
    export,
    inspect,
    methods,
    prune,
    push,
    recover,
    report,
    score,
    start,
)
from llmprune.cli.app import app
from llmprune.errors import LlmpruneError, RequestError

__all__ = ["app", "main"]


def main() -> NoReturn:
    """Run a command; exit with 0 when it is done, 1 when it failed, 2 when the request was wrong, 3 where a
    condition of `eval --fail-if` holds."""
    try:
        with ranks.joined():
            app()
    except SystemExit as leaving:
        if leaving.code == 130:
            typer.echo("llmprune: stopped; rerun it (`prune`, `score` and `recover` with --resume)", err=True)
        sys.exit(leaving.code)
    except RequestError as error:
        if ranks.first():  # the others found the same
            typer.echo(f"llmprune: {error}", err=True)
        sys.exit(2)
    except LlmpruneError as error:
        typer.echo(f"llmprune: {error}", err=True)
        sys.exit(1)
    sys.exit(0)
