"""Commands that make a checkpoint, or plan one."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from llmprune.cli import display
from llmprune.cli.app import app
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
from llmprune.errors import RequestError


@app.command()
def prune(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write (with --push-to-hub, called like the repository)."),
    ] = None,
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
    eval_: Annotated[
        str | None,
        typer.Option("--eval", help="Afterwards, score these tasks or this suite, dense and pruned."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder of data sets by their Hub names, for --eval.")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Afterwards, upload the result as name/repo. Asked again, goes on.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Let only you see it on the Hub.")] = False,
    resume: Resume = False,
    trust_remote_code: Trust = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Prune MODEL into a new folder that plain transformers loads."""
    from llmprune.job import Run
    from llmprune.pushing import require_pushable_name
    from llmprune.recipe_text import from_words

    if push_to_hub is not None:
        require_pushable_name(push_to_hub)
        resume = resume or out is None  # what has that name is an earlier try of the same, or refused
        out = out or Path(push_to_hub.rpartition("/")[2])
    if out is None:
        raise RequestError("out", "no folder was named for the pruned checkpoint; give --out")
    run = Run(out, resume, device, dtype, max_memory, trust_remote_code)
    name, asked = from_words(locals())
    from llmprune_eval import keeping, tasks

    from llmprune import pushing, recovering, report
    from llmprune.pruning import begin, carry_out

    judged = tasks.ask(eval_, data=data) if eval_ is not None else None
    display.quiet()
    todo = begin(name, asked, recovering.first(asked, run))
    if not isinstance(todo, report.Report):
        display.table(todo.plan.rows(), sys.stderr)
        todo.plan.require_fit(todo.out)
        todo = carry_out(todo, None, None)
    done = recovering.then(asked, run, todo)
    if judged is not None:
        where = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        keeping.judge(out, name, judged, where)
        done = report.read(out) or done
    if push_to_hub is not None:
        pushing.push(out, push_to_hub, private=private)
    display.show_report(done, out, as_json)


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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist yet.")] = Path("demo-2of4"),
    as_json: Json = False,
) -> None:
    """Prune a real model (SmolLM2-135M-Instruct) to 2:4 with Wanda, and measure what it cost."""
    from llmprune_eval.evaluation import evaluate
    from llmprune_eval.perplexity import Protocol

    from llmprune import demo as show
    from llmprune.checkpoint import draft
    from llmprune.pruning import prune as run

    draft.require_usable(out, resume=False)
    display.quiet()
    start = time.monotonic()
    name = show.model()
    report = run(name, out=out, **show.ASK)
    found = evaluate({"dense": name, "pruned": str(out)}, [show.TEXT], Protocol(**show.PROTOCOL))
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
