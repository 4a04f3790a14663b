"""`llmprune inspect`."""

from __future__ import annotations

import sys

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import (
    Allocation,
    Bos,
    Column,
    Device,
    Dtype,
    Json,
    Layout,
    Length,
    MaxMemory,
    Method,
    Model,
    Multiple,
    Pattern,
    Policy,
    Propagation,
    RecipeName,
    Repair,
    Samples,
    Seed,
    Set,
    Sparsity,
    Text,
    Trust,
)


@app.command()
def inspect(
    context: typer.Context,
    model: Model,
    recipe: RecipeName = None,
    method: Method = None,
    pattern: Pattern = None,
    sparsity: Sparsity = None,
    allocation: Allocation = None,
    repair: Repair = None,
    layout: Layout = None,
    multiple: Multiple = None,
    propagation: Propagation = None,
    policy: Policy = None,
    calibration: Text = None,
    samples: Samples = None,
    length: Length = None,
    seed: Seed = None,
    bos: Bos = None,
    text_column: Column = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    trust_remote_code: Trust = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Show what pruning MODEL would take; loads no weights."""
    from llmprune.recipe.text import from_options
    from llmprune.run.job import Run, checkpoint_job

    run = Run(None, False, device, dtype, max_memory, trust_remote_code)
    name, asked = from_options(context.params, method="wanda")
    display.quiet()
    todo = checkpoint_job(name, asked, run)
    if as_json:
        display.print_json({"plan": todo.plan.to_dict(), "recipe": todo.recipe.resolved()})
    else:
        display.table(todo.plan.rows(), sys.stdout)
    todo.plan.require_fit(None)
