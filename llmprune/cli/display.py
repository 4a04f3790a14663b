"""Outcomes in words: tables on stdout or stderr, or one JSON object."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import typer
from llmprune_eval import candidates

from llmprune.errors import JobError, RequestError
from llmprune.measured import BudgetTrial, Planned, lowest, trial_in_words
from llmprune.report import RecoveryRecord, Report
from llmprune.vocabulary.choice import VocabularyRecord


def show_report(report: Report, out: Path, as_json: bool) -> None:
    """What came of a run."""
    if as_json:
        return print_json(json.loads(report.to_json()))
    totals, spent = report.totals, report.time
    asked = report.recipe["sparsity"]
    rows = [
        (
            "sparsity",
            f"{totals['sparsity']:.2%} of the pruned layers ({asked:.2%} asked), "
            f"{totals['model_sparsity']:.2%} of the model",
        ),
        ("parameters", f"{totals['parameters_before']:,} before, {totals['parameters_after']:,} after"),
        ("bytes", f"{totals['bytes_before']:,} before, {totals['bytes_after']:,} after"),
        *_target(report.planned),
        *_errors([site.error for site in report.sites if site.error is not None]),
        *_budgets(report.budgets or []),
        *_vocabulary(report.vocabulary),
        *_recovery(report.recovery),
        ("time", f"{spent['total_s']:.1f} s; {_beside(report)}"),
        ("written to", str(out)),
        ("load it with", loading_line(report, out)),
        *(("warning", sentence) for sentence in report.warnings),
    ]
    table(rows, sys.stdout)


def _target(planned: Planned | None) -> list[tuple[str, str]]:
    if planned is None:
        return []
    by = planned["judged_by"].replace("kl", "KL divergence").replace("_", " ")
    best = next(one for one in planned["candidates"] if one["name"] == planned["chosen"])
    why = f"the lowest {by} on held-out windows of those that land there"
    if not planned.get("landed", True):
        why = "the nearest, since none lands there"
    return [
        ("target", f"{planned['target']}: {candidates.reached(planned, best)}"),
        ("chosen", f"{best['name']}, {why}"),
        *(("candidate", sentence) for sentence in candidates.sentences(planned)),
    ]


def _beside(report: Report) -> str:
    """What the time of a run is to be compared with."""
    if report.planned and "seconds" in report.planned:
        return f"all candidates, with judging, took {report.planned['seconds']:.0f} s"
    return f"one plain forward of the text takes {report.time['forward_floor_s']:.1f} s"


def _errors(errors: list[float]) -> list[tuple[str, str]]:
    if not errors:
        return []
    return [("output error", f"{sum(errors) / len(errors):.4f} on average, {max(errors):.4f} at most")]


def _budgets(tried: list[BudgetTrial]) -> list[tuple[str, str]]:
    if not tried:
        return []
    first, best = tried[0], tried[lowest(tried)]
    others = "" if best is first else f"; {trial_in_words(first)}"
    return [("budget", f"the best of {len(tried)}, {trial_in_words(best)} on held-out windows{others}")]


def _vocabulary(record: VocabularyRecord | None) -> list[tuple[str, str]]:
    if record is None:
        return []
    rows = f"{record['rows_after']:,} of {record['rows_before']:,} rows"
    before, after = record["text_tokens_before"], record["text_tokens_after"]
    if before and after:
        rows += f"; {record['text']} needs {after:,} tokens instead of {before:,} ({after / before:.4f} x)"
    return [("vocabulary", rows)]


def _recovery(record: RecoveryRecord | None) -> list[tuple[str, str]]:
    if record is None:
        return []
    if "losses" in record:
        losses = record["losses"]
        return [("recovery", f"{record['name']}: loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last")]
    before, after = (
        sum(site[key] for site in record["sites"]) / len(record["sites"])
        for key in ("error_before", "error_after")
    )
    return [("recovery", f"{record['name']}: output error {before:.4f} before, {after:.4f} after")]


def loading_line(report: Report, out: Path) -> str:
    """How to load a result."""
    line: str = report.reload["line"] if report.reload else f"(not loaded yet: {out})"
    return line


def table(rows: list[tuple[str, str]], stream: TextIO) -> None:
    """Two columns."""
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        typer.echo(f"{key:<{width}}  {value}", file=stream)


def grid(head: list[str], rows: list[list[str]], stream: TextIO) -> None:
    """Many columns: fitted to a terminal, plain elsewhere."""
    if stream.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        ruled = Table(box=SIMPLE_HEAD, padding=0)
        for name in head:
            ruled.add_column(name, overflow="fold")
        for row in rows:
            ruled.add_row(*map(Text, row))
        return Console(file=stream).print(ruled)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip(), file=stream)


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on stdout."""
    typer.echo(json.dumps(value, allow_nan=False, default=str))


def quiet() -> None:
    """Keep the libraries' own bars and notes out of ours."""
    import datasets
    import huggingface_hub.utils
    import transformers

    for library in (transformers, huggingface_hub):
        library.utils.logging.set_verbosity_error()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # its errors are raised, too
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def require_file(out: Path) -> None:
    """Refuse a path that no file can have."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise RequestError("out", f"{out} cannot be written; name a file in a folder that exists")


def write(out: Path, text: str) -> None:
    """Write a file that the user named."""
    try:
        out.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise JobError(f"{out} cannot be written ({error.strerror}); give another --out") from error
