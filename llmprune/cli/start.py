"""`llmprune` alone: what to do next with what lies in this folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import typer

from llmprune import ranks
from llmprune.cli.app import app
from llmprune.errors import RequestError

NOTHING = [
    ("llmprune demo", "make a small real model smaller, and measure it"),
    ("llmprune prune org/name --recipe small --out smaller", "prune a model of the Hub"),
]
ALL = "All commands: llmprune --help"
LOOKED_AT, TOLD = 200, 12  # folders, commands
Advice = tuple[str, str]


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Prune language models after training. Without a command: what to do next in this folder."""
    if ranks.count() > 1 and context.invoked_subcommand not in ("prune", "score", "recover"):
        raise RequestError("ranks", f"{ranks.count()} processes can only prune, score and recover; start one")
    if context.invoked_subcommand is None:
        told = advice(Path())
        lines = [f"{command}\n    {why}" for command, why in told[:TOLD]]
        more = [f"and {len(told) - TOLD} more"] if len(told) > TOLD else []
        typer.echo("\n".join(["Next:", *lines, *more, ALL]))


def advice(folder: Path) -> list[Advice]:
    """Commands that fit what a folder and the folders in it hold, each with what it does."""
    found: list[Advice] = []
    finished: list[str] = []
    for place in _places(folder):
        try:
            found += _of(place, finished)
        except OSError:  # of somebody else
            continue
    if len(finished) > 1:
        found.append((f"llmprune report {' '.join(finished)}", "one page about them all"))
    return found or NOTHING


def _places(folder: Path) -> list[Path]:
    """The folder, and those in it that are not hidden."""
    try:
        inside = [one for one in islice(folder.iterdir(), LOOKED_AT) if one.name[:1] != "." and one.is_dir()]
    except OSError:
        return []
    return [folder, *sorted(inside)]


def _of(place: Path, finished: list[str]) -> Iterator[Advice]:
    """What fits one folder; a finished one is noted."""
    from llmprune.paths import UNFINISHED
    from llmprune.report import FILE

    name = shlex.quote(f"./{place}" if str(place).startswith("-") else str(place))
    if (place / UNFINISHED).is_dir():
        yield (
            "the command that wrote it, with --resume",
            f"{name} is unfinished: still running, or interrupted",
        )
    elif (place / FILE).is_file():
        try:
            yield from _of_pruned(place, name)
        except RequestError as error:
            yield f"# {name}", error.said
            return
        finished.append(name)
    elif (place / "config.json").is_file() and any(place.glob("*.safetensors")):
        yield f"llmprune inspect {name} --recipe small", "what pruning it would take"
        out = _beside(place, "-small")
        if not out.exists():
            yield f"llmprune prune {name} --recipe small --out {shlex.quote(str(out))}", "make it smaller"


def _of_pruned(place: Path, name: str) -> Iterator[Advice]:
    """What has not been done yet with a finished folder."""
    from llmprune import report

    known = report.read(place)
    assert known is not None
    dense = shlex.quote(known.model["source"] or "DENSE")
    if not known.evaluation:
        asked = f"llmprune eval {name} --baseline {dense} --perplexity builtin --save"
        yield asked, "what it still knows, beside the dense model"
    whole = place.resolve()
    recovered = (whole.with_name(whole.name.removesuffix("-pruned")), _beside(place, "-recovered"))
    if not known.recovery and not any(one != whole and one.exists() for one in recovered):
        yield f"llmprune recover {name} --method distill", "let the dense model teach it"
    if not _beside(place, "-q8_0.gguf").exists():
        yield f"llmprune export {name} --to gguf --type q8_0", "one file for llama.cpp and Ollama"


def _beside(place: Path, ending: str) -> Path:
    """A path beside a folder, called like it."""
    named = place if place.name else place.resolve()
    return named.with_name(f"{named.name}{ending}")
