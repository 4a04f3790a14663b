"""`llmprune recover`."""

from __future__ import annotations

import dataclasses
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
    DeviceMap,
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

DEFAULT = "lora"


@app.command("recover")
def recover_(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The folder of a pruned checkpoint.")],
    method: Annotated[str | None, typer.Option(help="How (lora); see `llmprune methods`.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write (MODEL-recovered).")] = None,
    baseline: Annotated[str | None, typer.Option(help="The dense model, if it has moved.")] = None,
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
    resume: Resume = False,
    trust_remote_code: Trust = False,
    set_: Set = None,
    lora: Annotated[bool, typer.Option("--lora", hidden=True)] = False,
    reconstruct: Annotated[bool, typer.Option("--reconstruct", hidden=True)] = False,
    as_json: Json = False,
) -> None:
    """Bring quality back to a pruned checkpoint, into a new folder; sizes stay, and zeros.

    The text is that with which it was pruned, unless another is named.
    """
    from llmprune import recovering
    from llmprune.recipe.text import set_options, text_options
    from llmprune.run.asked import Run

    how: dict[str, object] = {"name": _name(method, {"lora": lora, "reconstruct": reconstruct})}
    text = text_options(context.params)
    for key, value in set_options(context.params).items():
        if key.startswith("calibration."):
            text[key.removeprefix("calibration.")] = value
        else:  # which may be named as `prune` names it, too
            how[key.removeprefix("recovery.")] = value
    display.quiet()
    run = Run(out, resume, device, dtype, max_memory, trust_remote_code, device_map)
    report = recovering.recover(model, how, baseline=baseline, calibration=text, **dataclasses.asdict(run))
    if ranks.first():
        display.show_report(report, out or recovering.beside(model), as_json)


def _name(method: str | None, flags: dict[str, bool]) -> str:
    """The recovery that was asked for; until the next version, flags name those that they did before.

    Raises:
        RequestError: several were.
    """
    asked = [name for name, given in flags.items() if given]
    if method is not None and method not in asked:
        asked.append(method)
    if len(asked) > 1:
        raise RequestError(
            "method", f"{' and '.join(asked)} were asked, and one recovers at a time; name it with --method"
        )
    return asked[0] if asked else DEFAULT
