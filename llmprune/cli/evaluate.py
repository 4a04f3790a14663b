"""`llmprune eval`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llmprune.cli import display
from llmprune.cli.app import app
from llmprune.cli.options import Bos, Column, Device, DeviceMap, Dtype, Json, Length, Save, Trust
from llmprune.errors import RequestError


@app.command("eval")
def evaluate(
    models: Annotated[list[str], typer.Argument(help="One or more: a folder, a .gguf file or a Hub id.")],
    perplexity: Annotated[
        list[str] | None,
        typer.Option(help="builtin, wikitext2, c4, FILE, a Hub id, or typos:TEXT; repeatable."),
    ] = None,
    length: Length = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Only the first so many windows.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens between windows (their length).")] = None,
    bos: Bos = None,
    tasks: Annotated[
        str | None, typer.Option(help="lm-eval's tasks a,b; or the suites quick, sharp, paper, mmlu.")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="A suite of tasks, or talk: answers to prompts; repeatable.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask tasks through the model's chat template.")
    ] = False,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each question.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions a task.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draw the questions of --limit, instead of the first ones.")
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Of the tasks: a number, or auto.")] = "1",
    data: Annotated[
        Path | None, typer.Option(help="A folder of data sets by their Hub names, for the tasks.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="The dense model, measured alike.")] = None,
    draft_for: Annotated[
        str | None, typer.Option(help="A model for which MODELS would guess tokens: what that gains.")
    ] = None,
    served: Annotated[
        str | None, typer.Option(help="Ask an OpenAI-compatible server at this URL, which serves MODELS.")
    ] = None,
    text_column: Column = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the JSON object here as well.")] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help='Exit with 3 where a figure is so, as in "kl > 0.1" or "sharp.kept < 0.9"; repeatable.'
        ),
    ] = None,
    save: Save = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure MODELS; with --baseline, beside the dense model under the same protocol."""
    from llmprune_eval import draft, evaluation, gate, keeping, talk
    from llmprune_eval import tasks as scored
    from llmprune_eval.windows import Protocol

    from llmprune.text.bos import parse

    talks = "talk" in (suite or ())
    tasks = ",".join(filter(None, [tasks, *(name for name in suite or () if name != "talk")])) or None
    if not (perplexity or tasks or talks or draft_for):
        raise RequestError("perplexity", "nothing was asked to be measured; give a text, --tasks or --suite")
    if out is not None:
        display.require_file(out)
    names = _named(models, baseline, served, draft_for)
    if save:
        keeping.require_ours(models)
    asked = None
    if tasks is not None:
        which = {"num_fewshot": num_fewshot, "limit": limit, "seed": seed}
        asked = scored.ask(tasks, **which, batch_size=batch_size, data=data)
        asked = dataclasses.replace(asked, chat=chat)
    conditions = [gate.parse(said) for said in fail_if or ()]
    gate.require_known(
        conditions, gate.names(perplexity or [], asked, talks=talks, baseline=baseline is not None)
    )
    display.quiet()
    protocol = Protocol(length, windows, stride, parse("auto" if bos is None else bos, "bos"), text_column)
    where: dict[str, Any] = {"device": device, "device_map": device_map, "dtype": dtype}
    where |= {"trust_remote_code": trust_remote_code}
    prompts = min(limit or talk.PROMPTS, talk.PROMPTS) if talks else None
    # Drafts first: what they refuse must not lose what took hours.
    drafts = {} if draft_for is None else {name: draft.measure(name, draft_for, where) for name in models}
    results = evaluation.evaluate(names, perplexity or [], protocol, asked, where, prompts)
    for found in results.values():
        if found["name"] in drafts:
            found["draft"] = drafts[found["name"]]
    _tell(results, as_json)  # first: a full disk must not lose what took hours
    if save:
        keeping.keep(results)
    if out is not None:
        display.write(out, json.dumps(results, indent=1))
    if failed := gate.failed(conditions, results):
        typer.echo("\n".join(failed), err=True)
        raise typer.Exit(3)


def _named(
    models: list[str], baseline: str | None, served: str | None, draft_for: str | None
) -> dict[str, Any]:
    """The models by the role that each plays."""
    from llmprune_eval.served import Served

    if served is not None and not served.startswith(("http://", "https://")):
        raise RequestError("served", f"{served!r} is no address; give one such as http://localhost:8000")
    if served is not None and draft_for is not None:
        raise RequestError("draft_for", "a draft is measured here; leave out --draft-for, or --served")
    if served is not None and len(models) > 1:
        raise RequestError("served", f"one model is served there, and {len(models)} were named; name one")
    names: dict[str, Any] = {} if baseline is None else {"baseline": baseline}
    for number, name in enumerate(models, 1):
        role = "model" if number == 1 else f"model-{number}"
        names[role] = name if served is None else Served(name, served)
    return names


def _tell(results: dict[str, dict[str, Any]], as_json: bool) -> None:
    from llmprune_eval import evaluation

    if as_json:
        return display.print_json(results)
    for found in results.values():
        typer.echo(found["name"])
        display.table(evaluation.rows(found), sys.stdout)
