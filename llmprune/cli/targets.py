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
