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
    Target,
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
    target: Target = None,
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
    """Show what pruning MODEL would take; loads no weights.

    Of a recipe with steps, every plan is for MODEL as it is, which no later step needs more than.
    """
    from llmprune.recipe.text import from_options
    from llmprune.run.job import Run, checkpoint_job, require_steps

    run = Run(None, False, device, dtype, max_memory, trust_remote_code)
    name, asked = from_options(context.params, method="wanda")
    display.quiet()
    require_steps(name, asked, run)
    *earlier, last = [checkpoint_job(name, step, run) for step in asked.every_step]
    plans = [todo.plan for todo in (*earlier, last)]
    if as_json:
        settled = last.recipe.model_copy(update={"before": asked.before})
        before = {"steps": [plan.to_dict() for plan in plans[:-1]]} if earlier else {}
        display.print_json(before | {"plan": last.plan.to_dict(), "recipe": settled.resolved()})
    else:
        for number, plan in enumerate(plans, 1):
            title = [("step", f"{number} of {len(plans)}")] if earlier else []
            display.table(title + plan.rows(), sys.stdout)
    for plan in plans:
        plan.require_fit(None)
