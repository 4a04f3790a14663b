"""The program that commands are added to."""

import typer

app = typer.Typer(
    pretty_exceptions_enable=False,
)
