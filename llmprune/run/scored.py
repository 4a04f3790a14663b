"""Scores that are pruned from: whether they are of this model, this text and this method."""

from __future__ import annotations

from pathlib import Path

from llmprune.checkpoint import shards
from llmprune.checkpoint.opened import Opened
from llmprune.errors import RequestError
from llmprune.plugins import name_of
from llmprune.recipe import Recipe
from llmprune.walk import scores
from llmprune.walk.scores import Scores


def opened(folder: Path, recipe: Recipe, model: Opened) -> Scores:
    """The scores in a folder, if pruning by a recipe can do with them.

    Args:
        folder: that `llmprune score` has finished.
        recipe: with the length of a window filled in.
        model: that is to be pruned.

    Raises:
        RequestError: they are of something else, or pruning needs the text itself.
    """
    _require_dense(recipe)
    folder = folder.expanduser()
    record = scores.read(folder)
    then = Recipe.parse(record.recipe)
    compared = (
        ("model", record.files, files(model)),
        ("method", then.method, recipe.method),
        ("text", then.calibration, recipe.calibration),
        ("kind of site", then.pattern.prunes, recipe.pattern.prunes),
    )
    for what, was, now in compared:
        if was != now:
            raise RequestError(
                "scores",
                f"{folder} holds those of another {what}; give what was scored, or score this",
            )
    found = Scores(folder, then.needs, record.calibration)
    found.require(recipe.needs)
    return found


def files(model: Opened) -> dict[str, str]:
    """The sha256 of the files of a checkpoint that decide what it computes."""
    assert model.source is not None
    return {"config.json": shards.sha256(model.source.folder / "config.json"), **model.source.hashes}


def _require_dense(recipe: Recipe) -> None:
    """Refuse what has to be measured while the model is pruned.

    Raises:
        RequestError: it says what to ask instead.
    """
    if recipe.propagation != "dense":
        raise RequestError(
            "propagation",
            f"scores are of the dense model, and {recipe.propagation} measures the pruned one; use dense",
        )
    rule = recipe.allocation
    if rule.holds_out or (rule.needs_text and not rule.spreads):
        raise RequestError(
            "allocation",
            f"{name_of(rule)} runs the model on the text, which scores are to spare; use "
            "uniform, or leave --scores out",
        )
