"""`llmprune` alone: what to do next with what lies in this folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import typer

from llmprune.cli.app import app

NOTHING = [
    ("llmprune demo", "make a small real model smaller, and measure it"),
    ("llmprune prune org/name --recipe small --out smaller", "prune a model of the Hub"),
]
ALL = "All commands: llmprune --help"


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Prune language models after training. Without a command: what to do next in this folder."""
    if context.invoked_subcommand is None:
        lines = [f"{command}\n    {why}" for command, why in advice(Path())]
        typer.echo("\n".join(["Next:", *lines, ALL]))


def advice(folder: Path) -> list[tuple[str, str]]:
    """Commands that fit what a folder and the folders in it hold, each with what it does."""
    from llmprune.checkpoint import draft
    from llmprune.report import FILE

    places = [folder, *sorted(one for one in folder.iterdir() if one.is_dir())]
    found: list[tuple[str, str]] = []
    finished = []
    for place in places:
        name = shlex.quote(str(place))
        if draft.is_unfinished(place):
            found.append(
                (
                    "the command that wrote it, with --resume",
                    f"{name} is unfinished: still running, or interrupted",
                )
            )
        elif (place / FILE).is_file():
            finished.append(name)
            found += _of_pruned(place, name)
        elif _is_model(place):
            found.append((f"llmprune inspect {name} --recipe small", "what pruning it would take"))
            found.append((f"llmprune prune {name} --recipe small --out {name}-small", "make it smaller"))
    if len(finished) > 1:
        found.append((f"llmprune report {' '.join(finished)}", "one page about them all"))
    return found or NOTHING


def _of_pruned(place: Path, name: str) -> Iterator[tuple[str, str]]:
    """What has not been done yet with a finished folder."""
    from llmprune import report

    known = report.read(place)
    if known is None:
        return
    dense = shlex.quote(known.model["source"] or "DENSE")
    if not known.evaluation:
        asked = f"llmprune eval {name} --baseline {dense} --perplexity builtin --save"
        yield asked, "what it still knows, beside the dense model"
    if not known.recovery:
        yield f"llmprune recover {name} --method distill", "let the dense model teach it"
    yield f"llmprune export {name} --to gguf --type q8_0", "one file for llama.cpp and Ollama"


def _is_model(place: Path) -> bool:
    return (place / "config.json").is_file() and any(place.glob("*.safetensors"))
