"""`llmprune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmprune.cli import display
from llmprune.cli.app import app


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished checkpoint.")],
    to: Annotated[Literal["gguf"], typer.Option("--to", help="The format.")] = "gguf",
    kind: Annotated[
        str, typer.Option("--type", help="Of the matrices: f32, f16, bf16, q8_0 or q4_0.")
    ] = "f16",
    like: Annotated[
        Path | None, typer.Option(help="A GGUF file of the dense model, whose tokenizer is copied.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write (DIR-TYPE.gguf).")] = None,
) -> None:
    """Write DIR as one file that llama.cpp runs; blocks of different sizes, too."""
    from llmprune.export import gguf

    display.quiet()
    file = gguf.export(folder, out or gguf.beside(folder, kind), kind, like)
    size = file.stat().st_size / 1e6
    typer.echo(f"{file}: {size:.1f} MB\nllama-server -m {file}")
