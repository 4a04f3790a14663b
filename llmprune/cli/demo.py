"""`llmprune demo`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import Json


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist yet.")] = Path("demo-2of4"),
    as_json: Json = False,
) -> None:
    """Prune a real model (SmolLM2-135M-Instruct) to 2:4 with Wanda, and measure what it cost."""
    from llmprune_eval.evaluation import evaluate
    from llmprune_eval.windows import Protocol

    from llmprune.checkpoint import draft
    from llmprune.cli import demo_model
    from llmprune.pruning import prune as run

    draft.require_usable(out, resume=False)
    display.quiet()
    start = time.monotonic()
    name = demo_model.model()
    report = run(name, out=out, **demo_model.ASK)
    found = evaluate({"dense": name, "pruned": str(out)}, [demo_model.TEXT], Protocol(**demo_model.PROTOCOL))
    measured = {role: one["perplexity"][0] for role, one in found.items()}
    if as_json:
        return display.print_json({"out": str(out), **measured})
    zeros = {"dense": 0, "pruned": report.totals["sparsity"]}
    rows = [
        (
            role,
            f"perplexity {one['perplexity']:8.2f}   bits per byte {one['bits_per_byte']:.3f}   "
            f"zeros in the layers {zeros[role]:4.0%}",
        )
        for role, one in measured.items()
    ]
    display.table([*rows, ("protocol", measured["dense"]["protocol"])], sys.stdout)
    seconds, line = time.monotonic() - start, display.loading_line(report, out)
    typer.echo(f"\nDone in {seconds:.0f} s. Load it with\n  {line}")
