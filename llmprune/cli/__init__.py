"""`llmprune COMMAND`: words into calls, and their outcomes into words.

Every command imports what it needs itself, so that `llmprune --help` answers at once. Results go to stdout,
news and errors to stderr; with --json, stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from llmprune.cli import display
from llmprune.cli.options import (
    Allocation,
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
    Resume,
    Samples,
    Seed,
    Set,
    Sparsity,
    Text,
    Trust,
)
from llmprune.errors import LlmpruneError, RequestError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist yet.")],
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
    text_column: Column = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    recovery: Annotated[
        str | None, typer.Option("--recover", help="Afterwards, reconstruct or lora; keeps OUT-pruned too.")
    ] = None,
    resume: Resume = False,
    trust_remote_code: Trust = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Prune MODEL into a new folder that plain transformers loads."""
    from llmprune.job import Run
    from llmprune.recipe_text import from_words

    run = Run(out, resume, device, dtype, max_memory, trust_remote_code)
    name, asked = from_words(locals())
    from llmprune import recovering
    from llmprune.pruning import begin, carry_out
    from llmprune.report import Report

    display.quiet()
    todo = begin(name, asked, recovering.first(asked, run))
    if not isinstance(todo, Report):
        display.table(todo.plan.rows(), sys.stderr)
        todo.plan.require_fit(todo.out)
        todo = carry_out(todo, None, None)
    display.show_report(recovering.then(asked, run, todo), out, as_json)


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
    """Bring quality back to a pruned checkpoint, into a new folder; sizes and zeros stay."""
    from llmprune import recovering
    from llmprune.job import Run
    from llmprune.recipe_text import assigned, text_words

    if reconstruct and lora:
        raise RequestError("reconstruct", "both --reconstruct and --lora were asked; recover twice")
    display.quiet()
    how = {"name": "reconstruct" if reconstruct else "lora", **assigned(set_)}
    text = text_words(locals())
    run = Run(out, resume, device, dtype, max_memory, trust_remote_code)
    report = recovering.recover(model, how, baseline=baseline, calibration=text, **dataclasses.asdict(run))
    display.show_report(report, out or recovering.beside(model), as_json)


@app.command()
def bench(
    model: Model,
    baseline: Annotated[str | None, typer.Option(help="The dense model, measured in turns with it.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens written after it.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements, after a warm-up.")] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure how fast MODEL reads and writes, and the memory it takes, beside the dense model."""
    from llmprune_eval.bench import Load, compare, rows

    display.quiet()
    names = [model] if baseline is None else [baseline, model]
    load = Load(batch, prompt, new_tokens, repeats)
    found = compare(names, load, device=device, dtype=dtype, trust=trust_remote_code)
    if as_json:
        return display.print_json(found)
    display.table(rows(found), sys.stdout)


@app.command()
def inspect(
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
    text_column: Column = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    trust_remote_code: Trust = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Show what pruning MODEL would take; loads no weights."""
    from llmprune.job import Run, checkpoint_job
    from llmprune.recipe_text import from_words

    run = Run(None, False, device, dtype, max_memory, trust_remote_code)
    name, asked = from_words(locals(), {"method": "wanda"})
    display.quiet()
    todo = checkpoint_job(name, asked, run)
    if as_json:
        display.print_json({"plan": todo.plan.to_dict(), "recipe": todo.recipe.resolved()})
    else:
        display.table(todo.plan.rows(), sys.stdout)
    todo.plan.require_fit(None)


@app.command("eval")
def evaluate(
    model: Model,
    perplexity: Annotated[
        list[str] | None, typer.Option(help="A text, as for --calibration; repeatable.")
    ] = None,
    length: Length = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Only the first so many windows.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The dense model, measured alike.")] = None,
    text_column: Column = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the JSON object here as well.")] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure MODEL, and the model it came from beside it."""
    from llmprune_eval.perplexity import compare

    if not perplexity:
        raise RequestError("perplexity", "nothing was asked to be measured; give a text, such as builtin")
    if out is not None and not out.parent.is_dir():
        raise RequestError("out", f"{out} cannot be written: there is no folder {out.parent}")
    display.quiet()
    names = {"model": model} | ({} if baseline is None else {"baseline": baseline})
    protocol = {"length": length, "windows": windows, "column": text_column or "text"}
    where = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    results = compare(names, perplexity, protocol, where)
    if out is not None:
        out.write_text(json.dumps(results, indent=1))
    if as_json:
        return display.print_json(results)
    for found in results.values():
        for text in found["perplexity"]:
            typer.echo(f"{found['name']}: perplexity {text['perplexity']:.3f}\n    {text['protocol']}")


@app.command()
def methods(as_json: Json = False) -> None:
    """List what a recipe can name: methods, allocations and shipped recipes, with their options."""
    from llmprune import listing

    if as_json:
        display.print_json(listing.everything())
    else:
        typer.echo(listing.text())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist yet.")] = Path("demo-2of4"),
    as_json: Json = False,
) -> None:
    """Prune a real model (SmolLM2-135M-Instruct) to 2:4 with Wanda, and measure what it cost."""
    from llmprune_eval.perplexity import compare

    from llmprune import demo as show
    from llmprune.checkpoint import draft
    from llmprune.pruning import prune as run

    draft.require_usable(out, resume=False)
    display.quiet()
    start = time.monotonic()
    name = show.model()
    report = run(name, out=out, **show.ASK)
    found = compare({"dense": name, "pruned": str(out)}, [show.TEXT], show.PROTOCOL, {})
    measured = {role: one["perplexity"][0] for role, one in found.items()}
    if as_json:
        return display.print_json({"out": str(out), **measured})
    zeros = {"dense": 0, "pruned": report.totals["sparsity"]}
    rows = [
        (role, f"perplexity {one['perplexity']:8.2f}   zeros in the layers {zeros[role]:4.0%}")
        for role, one in measured.items()
    ]
    display.table([*rows, ("protocol", measured["dense"]["protocol"])], sys.stdout)
    seconds, line = time.monotonic() - start, display.loading_line(report, out)
    typer.echo(f"\nDone in {seconds:.0f} s. Load it with\n  {line}")


def main() -> NoReturn:
    """Run a command; exit with 0 when it is done, 1 when it failed, 2 when the request was wrong."""
    try:
        app()
    except SystemExit as leaving:
        if leaving.code == 130:
            typer.echo("llmprune: stopped; a prune goes on with --resume", err=True)
        sys.exit(leaving.code)
    except RequestError as error:
        typer.echo(f"llmprune: {error}", err=True)
        sys.exit(2)
    except LlmpruneError as error:
        typer.echo(f"llmprune: {error}", err=True)
        sys.exit(1)
    sys.exit(0)
