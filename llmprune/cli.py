"""`llmprune prune | inspect | eval | methods | demo`: words into a call, and its outcome into words.

Every command imports what it needs itself, so that `llmprune --help` answers at once. Results go to stdout,
news and errors to stderr; with --json, stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from llmprune.errors import LlmpruneError, RequestError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

Model = Annotated[
    str, typer.Argument(help="A folder, a .gguf file, a Hub id org/name[@revision], or a recipe.")
]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="A shipped recipe's name, or a YAML file.")]
Method = Annotated[str | None, typer.Option(help="See `llmprune methods`.")]
Pattern = Annotated[
    str | None,
    typer.Option(help="unstructured, N:M such as 2:4 (N of every M are kept), or units (channels, heads)."),
]
Sparsity = Annotated[float | None, typer.Option(help="Share of the weights that go, 0 to 1.")]
Allocation = Annotated[str | None, typer.Option(help="How much goes where; see `llmprune methods`.")]
Repair = Annotated[str | None, typer.Option(help="What makes up for removed units; see `llmprune methods`.")]
Layout = Annotated[
    str | None, typer.Option(help="How blocks of different sizes are written: uniform, per_layer or padded.")
]
Multiple = Annotated[
    int | None, typer.Option(help="Channels that stay in a block are a multiple of this (64).")
]
Propagation = Annotated[str | None, typer.Option(help="Calibrate on dense, block or layer outputs.")]
Text = Annotated[str | None, typer.Option(help="builtin, wikitext2, c4, a text file or table, or a Hub id.")]
Samples = Annotated[int | None, typer.Option(help="Calibration windows (128).")]
Length = Annotated[int | None, typer.Option(help="Tokens per window (2048, or the model's context).")]
Seed = Annotated[int | None, typer.Option(help="Places the calibration windows (0).")]
Column = Annotated[str | None, typer.Option(help="The column of a table that holds the text (text).")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="Of the computation: auto, float32, bfloat16 or float16.")]
MaxMemory = Annotated[str | None, typer.Option(help="Plan with at most this much, such as 8GiB.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any recipe option, as key=value; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


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
    calibration: Text = None,
    samples: Samples = None,
    length: Length = None,
    seed: Seed = None,
    text_column: Column = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run was cut off.")] = False,
    trust_remote_code: Trust = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Prune MODEL into a new folder that plain transformers loads."""
    from llmprune.job import Run
    from llmprune.recipe_text import from_words

    run = Run(out, resume, device, dtype, max_memory, trust_remote_code)
    name, asked = from_words(locals())
    from llmprune.pruning import begin, carry_out
    from llmprune.report import Report

    _quiet()
    todo = begin(name, asked, run)
    if isinstance(todo, Report):
        return _show_report(todo, out, as_json)
    _table(todo.plan.rows(), sys.stderr)
    todo.plan.require_fit(out)
    _show_report(carry_out(todo, None, None), out, as_json)


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
    _quiet()
    todo = checkpoint_job(name, asked, run)
    if as_json:
        _json({"plan": todo.plan.to_dict(), "recipe": todo.recipe.resolved()})
    else:
        _table(todo.plan.rows(), sys.stdout)
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
    from llmprune_eval.perplexity import measure

    from llmprune.loading import load

    if not perplexity:
        raise RequestError("perplexity", "nothing was asked to be measured; give a text, such as builtin")
    if out is not None and not out.parent.is_dir():
        raise RequestError("out", f"{out} cannot be written: there is no folder {out.parent}")
    _quiet()
    results: dict[str, Any] = {}
    for role, name in {"model": model, "baseline": baseline}.items():
        if name is None:
            continue
        loaded, tokenizer = load(name, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        texts = {
            text: measure(
                loaded, tokenizer, text, length=length, windows=windows, column=text_column or "text"
            )
            for text in perplexity
        }
        results[role] = {"name": name, "perplexity": [p.to_dict() for p in texts.values()]}
        for found in texts.values():
            if not as_json:
                typer.echo(f"{name}: perplexity {found.perplexity:.3f}\n    {found.protocol}")
        del loaded
    if out is not None:
        out.write_text(json.dumps(results, indent=1))
    if as_json:
        _json(results)


@app.command()
def methods(as_json: Json = False) -> None:
    """List what a recipe can name: methods, allocations and shipped recipes, with their options."""
    from llmprune import listing

    if as_json:
        _json(listing.everything())
    else:
        typer.echo(listing.text())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist yet.")] = Path("demo-2of4"),
    as_json: Json = False,
) -> None:
    """Prune a real model (SmolLM2-135M-Instruct) to 2:4 with Wanda, and measure what it cost."""
    from llmprune_eval.perplexity import measure

    from llmprune import demo as show
    from llmprune.checkpoint import draft
    from llmprune.loading import load
    from llmprune.pruning import prune as run

    draft.require_usable(out, resume=False)
    _quiet()
    start = time.monotonic()
    name = show.model()
    report = run(name, out=out, **show.ASK)
    rows, found = [], {}
    for role, which in {"dense": name, "pruned": str(out)}.items():
        found[role] = measure(*load(which), **show.EVALUATION)
        zeros = 0 if role == "dense" else report.totals["sparsity"]
        rows.append((role, f"perplexity {found[role].perplexity:8.2f}   zeros in the layers {zeros:4.0%}"))
    if as_json:
        return _json({"out": str(out), **{role: p.to_dict() for role, p in found.items()}})
    _table([*rows, ("protocol", found["dense"].protocol)], sys.stdout)
    typer.echo(f"\nDone in {time.monotonic() - start:.0f} s. Load it with\n  {_line(report, out)}")


def _show_report(report: Any, out: Path, as_json: bool) -> None:
    if as_json:
        return _json(json.loads(report.to_json()))
    totals, spent = report.totals, report.time
    errors = [site.error for site in report.sites if site.error is not None]
    rows = [
        (
            "sparsity",
            f"{totals['sparsity']:.2%} of the pruned layers, {totals['model_sparsity']:.2%} of the model",
        ),
        (
            "size",
            f"{totals['bytes_before']:,} bytes before, {totals['bytes_after']:,} after (zeros are stored)",
        ),
        (
            "time",
            f"{spent['total_s']:.1f} s; one plain forward of the text takes {spent['forward_floor_s']:.1f} s",
        ),
        ("written to", str(out)),
        ("load it with", _line(report, out)),
    ]
    if errors:
        rows.insert(
            1, ("output error", f"{sum(errors) / len(errors):.4f} on average, {max(errors):.4f} at most")
        )
    _table(rows, sys.stdout)


def _line(report: Any, out: Path) -> str:
    line: str = report.reload["line"] if report.reload else f"(not loaded yet: {out})"
    return line


def _table(rows: list[tuple[str, str]], stream: Any) -> None:
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        typer.echo(f"{key:<{width}}  {value}", file=stream)


def _json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, allow_nan=False, default=str))


def _quiet() -> None:
    """Keep the libraries' own bars and notes out of ours."""
    import datasets
    import huggingface_hub.utils
    import transformers

    for library in (transformers, datasets, huggingface_hub):
        library.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


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
