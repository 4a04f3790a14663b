"""`llmprune recover`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import (
    Column,
    Device,
    Dtype,
    Json,
    Length,
    MaxMemory,
    Resume,
    Samples,
    Seed,
    Set,
    Text,
    Trust,
)
from llmprune.errors import RequestError


@app.command("recover")
def recover_(
    model: Annotated[Path, typer.Argument(help="The folder of a pruned checkpoint.")],
    reconstruct: Annotated[
        bool, typer.Option("--reconstruct", help="Refit the output layers of every block to the dense ones.")
    ] = False,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train adapters on the text and merge them (the default).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The folder to write (MODEL-recovered).")] = None,
    baseline: Annotated[str | None, typer.Option(help="The dense model, if it has moved.")] = None,
    calibration: Text = None,
    samples: Samples = None,
    length: Length = None,
    seed: Seed = None,
    text_column: Column = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    resume: Resume = False,
    trust_remote_code: Trust = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Bring quality back to a pruned checkpoint, into a new folder; sizes and zeros stay.

    The text is that with which it was pruned, unless another is named.
    """
    from llmprune import recovering
    from llmprune.recipe_text import assigned, text_words
    from llmprune.run.job import Run

    if reconstruct and lora:
        raise RequestError("reconstruct", "both --reconstruct and --lora were asked; recover twice")
    display.quiet()
    how = {"name": "reconstruct" if reconstruct else "lora", **assigned(set_)}
    text = text_words(locals())
    run = Run(out, resume, device, dtype, max_memory, trust_remote_code)
    report = recovering.recover(model, how, baseline=baseline, calibration=text, **dataclasses.asdict(run))
    display.show_report(report, out or recovering.beside(model), as_json)
