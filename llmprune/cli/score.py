"""`llmprune score`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmprune import ranks
from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import (
    Bos,
    Column,
    Device,
    Dtype,
    Json,
    Length,
    MaxMemory,
    Method,
    Model,
    Pattern,
    Policy,
    RecipeName,
    Repair,
    Resume,
    Samples,
    Seed,
    Set,
    Text,
    Trust,
)


@app.command()
def score(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    recipe: RecipeName = None,
    method: Method = None,
    pattern: Pattern = None,
    repair: Repair = None,
    calibration: Text = None,
    samples: Samples = None,
    length: Length = None,
    seed: Seed = None,
    bos: Bos = None,
    text_column: Column = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    resume: Resume = False,
    trust_remote_code: Trust = False,
    policy: Policy = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Measure MODEL once; `llmprune prune MODEL --scores OUT` then prunes at any ratio, without a text."""
    from llmprune import scoring
    from llmprune.recipe.text import RECIPE, data_from_options

    absent = dict.fromkeys((*RECIPE, "multiple"))
    name, asked = data_from_options(absent | context.params)
    display.quiet()
    done = scoring.score(
        name,
        asked,
        out=out,
        resume=resume,
        device=device,
        dtype=dtype,
        max_memory=max_memory,
        trust_remote_code=trust_remote_code,
        on_plan=lambda plan: display.table(plan.rows(), sys.stderr) if ranks.first() else None,
    )
    if not ranks.first():
        return
    if as_json:
        return display.print_json(done.model_dump(by_alias=True))
    text = done.calibration
    rows = [
        ("held of each layer", " and ".join(done.statistics)),
        ("text", f"{text['samples']} windows of {text['length']} tokens of {text['dataset']}"),
        ("bytes", f"{done.bytes:,}"),
        ("time", f"{done.time['total_s']:.1f} s"),
        ("written to", str(out)),
        ("prune with", f"llmprune prune {name} --scores {out} --sparsity 0.5 --out pruned"),
    ]
    display.table(rows, sys.stdout)
