"""`llmprune inspect`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Any

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import (
    Allocation,
    Bos,
    Column,
    Device,
    DeviceMap,
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
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    trust_remote_code: Trust = False,
    set_: Set = None,
    for_: Annotated[
        str | None,
        typer.Option("--for", help="Say instead which of its sizes suit gguf, vllm or vllm:RANKS."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what pruning MODEL would take; loads no weights.

    Of a recipe with steps, every plan is for MODEL as it is, which no later step needs more than.
    """
    from llmprune.recipe.text import from_options
    from llmprune.run.asked import Run
    from llmprune.run.job import checkpoint_job, require_steps

    if for_ is not None:
        _show_fits(model, for_, as_json)
        return
    run = Run(None, False, device, dtype, max_memory, trust_remote_code, device_map)
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
            recovery = _recovery(last.recipe.recovery) if plan is plans[-1] else []
            display.table(title + plan.rows() + recovery, sys.stdout)
    for plan in plans:
        plan.require_fit(None)


def _recovery(asked: Any) -> list[tuple[str, str]]:
    """How much a recipe's recovery learns from, if there is one; its time is known once it has begun."""
    from llmprune import plugins

    if asked is None:
        return []
    tokens = getattr(asked, "tokens", None)
    much = f" on {tokens:,} tokens" if tokens else ""
    return [("recovery", f"{plugins.name_of(asked)}{much}, planned and told when the blocks are pruned")]


def _show_fits(model: str, engine: str, as_json: bool) -> None:
    from llmprune.export import fits, layers

    found = fits.fits(layers.read(model), engine)
    if as_json:
        display.print_json({"fits": [dataclasses.asdict(one) for one in found]})
    else:
        display.table([(one.what, one.why) for one in found], sys.stdout)
