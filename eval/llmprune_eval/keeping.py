"""Keep what was measured in the report and the card of a pruned checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmprune import card, report
from llmprune.errors import RequestError
from llmprune.progress import say
from llmprune_eval import evaluation
from llmprune_eval.perplexity import Protocol
from llmprune_eval.tasks import Ask

# What every pruned model's perplexity can be measured on, offline too, and how.
TEXT, PROTOCOL = "builtin", Protocol(windows=16)


def require_ours(models: list[str]) -> None:
    """Refuse to keep anything in a folder that llmprune did not write, or whose card cannot be read.

    Raises:
        RequestError: it names the first.
    """
    for name in models:
        found = report.read(Path(name))
        if found is not None:
            card.opened(Path(name), found)
        else:
            raise RequestError("save", f"{name} is no folder that llmprune wrote; leave out --save")


def judge(folder: Path, dense: str, asked: Ask, where: dict[str, Any]) -> None:
    """Measure a model that was just pruned beside the dense one, unless that has been done, and keep it."""
    done = report.read(folder)
    if done is not None and (done.evaluation or {}).get("asked") == _plain(asked):
        say(f"{folder} has been evaluated already")
        return
    names = {"baseline": dense, "model": str(folder)}
    keep(evaluation.evaluate(names, [TEXT], PROTOCOL, asked, where), _plain(asked))


def _plain(asked: Ask) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(asked), default=str))
    return plain


def keep(results: dict[str, Any], asked: dict[str, Any] | None = None) -> None:
    """Add to every model's report and card its own figures and the baseline's, without single answers."""
    dense = results.get("baseline")
    for role, found in results.items():
        if role == "baseline":
            continue
        beside = {"baseline": _short(dense)} if dense else {}
        _add(Path(found["name"]), {"asked": asked, "model": _short(found), **beside}, stays=("bench",))


def keep_speed(folder: Path, found: dict[str, Any]) -> None:
    """Add what a bench measured to a model's report and card."""
    _add(folder, {"bench": found}, stays=("asked", "model", "baseline"))


def _add(folder: Path, figures: dict[str, Any], stays: tuple[str, ...]) -> None:
    """Add figures to those of an evaluation that stay as they are."""
    kept = report.read(folder)
    assert kept is not None
    known = kept.evaluation or {}
    kept.evaluation = {key: known[key] for key in stays if key in known} | figures
    said = card.evaluated(folder, kept)
    (folder / "llmprune_report.json").write_text(kept.to_json())
    (folder / "README.md").write_text(said, encoding="utf-8")


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """Without the scores of single questions, which are thousands."""
    tasks = {
        name: {key: value for key, value in values.items() if key != "examples"}
        for name, values in found.get("tasks", {}).items()
    }
    return {**found, "tasks": tasks}
