"""`llmprune bench`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import Device, DeviceMap, Dtype, Json, Measured, Save, Trust
from llmprune.errors import RequestError


@app.command()
def bench(
    model: Measured,
    baseline: Annotated[str | None, typer.Option(help="The dense model, measured in turns with it.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens written after it.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements, or the fewest pairs of them.")] = 6,
    seconds: Annotated[float, typer.Option(min=0, help="After which no further pair is measured.")] = 120.0,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Measure what a token takes part by part instead.")
    ] = False,
    save: Save = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure how fast MODEL reads and writes, and its memory; with --baseline, in turns with that.

    Two models are measured in pairs until the 95 % intervals of the ratios of their speeds are within 3 %.
    """
    from llmprune_eval import keeping
    from llmprune_eval.bench import compare, rows
    from llmprune_eval.blocks import measure
    from llmprune_eval.runner import Load

    if blocks and (baseline is not None or device_map is not None or save):
        raise RequestError(
            "blocks", "it measures models of random weights; leave out --baseline, --device-map and --save"
        )
    if save:
        keeping.require_ours([model])
    display.quiet()
    if blocks:
        parts = measure(model, device=device, dtype=dtype, trust=trust_remote_code)
        shown = dataclasses.asdict(parts)
        return display.print_json(shown) if as_json else display.table(parts.rows(), sys.stdout)
    names = [model] if baseline is None else [baseline, model]
    load = Load(batch, prompt, new_tokens, repeats, seconds)
    where = {"device": device, "device_map": device_map, "dtype": dtype}
    found = compare(names, load, where | {"trust_remote_code": trust_remote_code})
    if as_json:
        display.print_json(found)
    else:
        display.table(rows(found), sys.stdout)
    if save:  # last: a full disk must not lose what was measured
        keeping.keep_speed(Path(model), found)
