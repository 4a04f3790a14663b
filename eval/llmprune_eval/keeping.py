"""Keep what was measured in the report and the card of a pruned checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmprune import card, report
from llmprune.errors import RequestError


def require_ours(models: list[str]) -> None:
    """Refuse to keep anything in a folder that llmprune did not write.

    Raises:
        RequestError: it names the first.
    """
    for name in models:
        if report.read(Path(name)) is None:
            raise RequestError("save", f"{name} is no folder that llmprune wrote; leave out --save")


def keep(results: dict[str, Any]) -> None:
    """Add to every model's report and card its own figures and the baseline's, without single answers."""
    dense = results.get("baseline")
    for role, found in results.items():
        if role == "baseline":
            continue
        folder = Path(found["name"])
        kept = report.read(folder)
        assert kept is not None
        kept.evaluation = {"model": _short(found)} | ({"baseline": _short(dense)} if dense else {})
        (folder / "llmprune_report.json").write_text(kept.to_json())
        card.evaluated(folder, kept)


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """Without the scores of single questions, which are thousands."""
    tasks = {
        name: {key: value for key, value in values.items() if key != "examples"}
        for name, values in found.get("tasks", {}).items()
    }
    return {**found, "tasks": tasks}
