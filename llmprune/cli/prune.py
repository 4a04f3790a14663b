"""`llmprune prune`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmprune import ranks
from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import (
    Allocation,
    Bos,
    Column,
    Device,
    DeviceMap,
    Dtype,
    Engine,
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
    Target,
    Text,
    Trust,
    in_after,
    in_much,
    in_text,
)
from llmprune.errors import RequestError
from llmprune.plugins import Options

if TYPE_CHECKING:
    from llmprune.report import Report


@app.command()
def prune(
    context: typer.Context,
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write (default: the name in --push-to-hub)."),
    ] = None,
    recipe: RecipeName = None,
    method: Method = None,
    pattern: Pattern = None,
    sparsity: Sparsity = None,
    target: Target = None,
    engine: Engine = None,
    dry_run: Annotated[
        bool, in_much("--dry-run", help="Show what --target would try; write nothing.")
    ] = False,
    allocation: Allocation = None,
    repair: Repair = None,
    layout: Layout = None,
    multiple: Multiple = None,
    calibration: Text = None,
    samples: Samples = None,
    length: Length = None,
    seed: Seed = None,
    bos: Bos = None,
    scores: Annotated[
        Path | None, in_text(help="What `llmprune score` kept, to prune from without a text.")
    ] = None,
    text_column: Column = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    recovery: Annotated[
        str | None,
        in_after("--recover", help="Heal it: distill, lora, reconstruct, rescale or refine."),
    ] = None,
    eval_: Annotated[
        str | None,
        in_after("--eval", help="Score tasks or a suite, dense and pruned."),
    ] = None,
    data: Annotated[
        Path | None,
        in_after(help="A folder of data sets by their Hub names, for --eval."),
    ] = None,
    export: Annotated[Literal["gguf"] | None, in_after(help="Write OUT-f16.gguf, for llama.cpp.")] = None,
    push_to_hub: Annotated[
        str | None,
        in_after(help="Upload as name/repo; resumes an interrupted upload."),
    ] = None,
    private: Annotated[bool, in_after("--private", help="Let only you see it on the Hub.")] = False,
    resume: Resume = False,
    trust_remote_code: Trust = False,
    propagation: Propagation = None,
    policy: Policy = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Prune MODEL into a new folder that plain transformers loads.

    llmprune prune org/name --recipe small --out smaller
    """
    from llmprune.cli import targets
    from llmprune.hub.pushing import require_pushable_name
    from llmprune.recipe.text import from_options

    if push_to_hub is not None:
        require_pushable_name(push_to_hub)
        resume = resume or out is None  # what has that name is an earlier try of the same, or refused
        out = out or Path(push_to_hub.rpartition("/")[2])
    if out is None and not dry_run:
        raise RequestError("out", "no folder was named for the pruned checkpoint; give --out")
    where: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    how = where | {"out": out, "resume": resume, "max_memory": max_memory, "device_map": device_map}
    how |= targets.measured(target, engine, dry_run=dry_run)
    if dry_run:
        return targets.show(context.params, how, as_json)
    assert out is not None
    read: Callable[[Options], tuple[str, Any]] = from_options if target is None else targets.asked
    name, asked = read(context.params)
    from llmprune_eval import keeping, tasks

    from llmprune import report
    from llmprune.export import gguf
    from llmprune.hub import pushing

    if export is not None:
        gguf.require_free(gguf.beside(out, "f16"))

    judged = tasks.ask(eval_, data=data) if eval_ is not None else None
    display.quiet()
    how["on_text"] = None if judged is None else keeping.require_unseen(name, trust_remote_code)
    done = _pruned(name, asked, target, scores, how)
    if not ranks.first():
        return
    with ranks.alone():
        if judged is not None:
            keeping.judge(out, name, judged, where)
            done = report.read(out) or done
        if export is not None:
            gguf.export(out, gguf.beside(out, "f16"), "f16")
        if push_to_hub is not None:
            pushing.push(out, push_to_hub, private=private)
    display.show_report(done, out, as_json)


def _pruned(name: str, asked: Any, target: str | None, scores: Path | None, how: dict[str, Any]) -> Report:
    """Prune by a recipe, or to a target."""
    from llmprune import pruning
    from llmprune.planning import reaching

    if target is not None:
        return reaching.reach(name, target, asked, **how)
    return pruning.prune(
        name,
        asked,
        scores=scores,
        on_plan=lambda plan: display.table(plan.rows(), sys.stderr) if ranks.first() else None,
        **how,
    )
