"""What `llmprune prune --target` is asked, and what it shows."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from llmprune_eval import candidates

from llmprune.cli import display
from llmprune.errors import RequestError
from llmprune.measured import Planned
from llmprune.plugins import Options
from llmprune.recipe.text import RECIPE, text_options

CHOSEN = (*RECIPE, "recipe", "multiple", "policy", "scores", "recovery", "set_")  # by the planner


def asked(options: Options) -> tuple[str, dict[str, object]]:
    """The model, and the text that calibrates.

    Raises:
        RequestError: something else is asked that a target decides.
    """
    for name in CHOSEN:
        if options.get(name):
            flag = {"set_": "set", "recovery": "recover"}.get(name, name)
            raise RequestError(flag, "a target chooses what goes, and how; leave one of them out")
    return str(options["model"]), text_options(options)


def measured(target: str | None, engine: str | None, *, dry_run: bool) -> dict[str, object]:
    """Where the speed of a target is measured.

    Raises:
        RequestError: something is asked that only a target has, and there is none.
    """
    if target is not None:
        return {"engine": engine}
    if dry_run:
        raise RequestError("dry_run", "it shows what --target would try; `llmprune inspect` plans a recipe")
    if engine is not None:
        raise RequestError("engine", "it says where the speed of a --target is measured; give one")
    return {}


def show(options: Options, how: dict[str, Any], as_json: bool) -> None:
    """The candidates for a target, none of them tried."""
    from llmprune.planning import reaching

    model, text = asked(options)
    display.quiet()
    planned = reaching.plan(model, str(options["target"]), text, **how)
    if as_json:
        return display.print_json(dict(planned))
    table(planned, sys.stdout)


def table(planned: Planned, stream: TextIO) -> None:
    """The candidates, a row each, and what was refused."""
    head = ["candidate", "expected", "reached", "KL", "bits per byte"]
    display.grid(head, candidates.rows(planned), stream)
    for sentence in planned["refused"]:
        print(f"not possible: {sentence}", file=stream)
