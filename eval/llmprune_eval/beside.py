"""Several runs beside each other, as data and as a table."""

from __future__ import annotations

from typing import Any

from llmprune_eval import figures
from llmprune_eval.runs import Run
from llmprune_eval.tables import name_of, percent


def compared(runs: list[Run]) -> list[dict[str, Any]]:
    """The comparison as plain data, one row a run."""
    found = figures.quality(runs)
    fronts = {against: figures.best(runs, found, against) for against in figures.costs(runs, found)}
    return [
        {
            "number": run.number,
            "name": run.name,
            "method": name_of(run.record.recipe["method"]),
            "pattern": name_of(run.record.recipe["pattern"]),
            "sparsity": run.record.totals["sparsity"],
            "model_sparsity": run.record.totals["model_sparsity"],
            "bytes": run.size,
            "quality": found.values.get(run.number),
            "decode": figures.speed(run, "decode"),
            "prefill": figures.speed(run, "prefill"),
            "front": [against for against, on in fronts.items() if run.number in on],
        }
        for run in runs
    ]


def summary(runs: list[Run]) -> dict[str, Any]:
    """The comparison as plain data, and what it compares."""
    found = figures.quality(runs)
    return {"quality": found.label, "dense": found.dense, "note": found.note, "runs": compared(runs)}


def rows(runs: list[Run]) -> tuple[list[str], list[list[str]]]:
    """The comparison as a table: its head and its rows."""
    found, known = figures.quality(runs), compared(runs)
    head = ["#", "run", "method", "pattern", "sparsity", "of model", "bytes", found.label, "front"]
    speeds = [part for part in ("decode", "prefill") if any(row[part] for row in known)]
    head[-1:-1] = speeds
    return head, [
        [
            *(str(row["number"]), row["name"], row["method"], row["pattern"]),
            *(percent(row["sparsity"]), percent(row["model_sparsity"]), percent(row["bytes"])),
            "-" if row["quality"] is None else f"{row['quality']:.4g}",
            *("-" if row[part] is None else f"{row[part]:.2f}x" for part in speeds),
            ", ".join(row["front"]) or "-",
        ]
        for row in known
    ]
