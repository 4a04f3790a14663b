"""Separate what a caller asked for into what to do, a recipe, and how to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from llmprune.checkpoint.placement import Asked
from llmprune.errors import RequestError
from llmprune.plugins import Options, sentence
from llmprune.recipe import Recipe
from llmprune.recipe.text import load_data, scored_data
from llmprune.text.windows import Windows


@dataclass(frozen=True)
class Run:
    """How to run, as opposed to what to do: nothing here changes the request."""

    out: str | Path | None = None
    resume: bool = False
    device: str = "auto"
    dtype: str = "auto"
    max_memory: str | None = None
    trust_remote_code: bool = False
    device_map: Asked | None = None
    """Where blocks wait between walks: `auto`, a file, or a mapping; of a recovery, the dense model's."""

    scores: str | Path | None = None
    """What `llmprune score` measured, to prune from instead of a text."""

    on_text: Callable[[Tensor], None] | None = None
    """Called with the calibration windows [N, L] before they are used; may refuse them."""

    def show(self, text: Windows | None) -> None:
        """Let the caller see the windows of a step."""
        if self.on_text and text:
            self.on_text(text.tokens)

    @property
    def folder(self) -> Path | None:
        """The folder to write, if any."""
        return Path(self.out) if self.out is not None else None


def request(recipe: Recipe | Options | str | Path | None, options: Options) -> tuple[Recipe, Run]:
    """Separate what the caller asked for into what to do and how to run; as `asked_for`."""
    data, run = asked_for(recipe, options)
    asked = Recipe.parse(data)
    if run.device_map not in (None, "auto") and (asked.before or asked.recovery):
        raise RequestError(
            "device_map", "a map names the modules of one model, and this recipe makes several; give auto"
        )
    return asked, run


def asked_for(
    recipe: Recipe | Options | str | Path | None, options: Options
) -> tuple[dict[str, object], Run]:
    """The same with the data of the recipe, as it was given.

    Args:
        recipe: a Recipe, a mapping, the name of a shipped recipe, a YAML file, or None.
        options: fields of Recipe, which win over the recipe's, and fields of Run.
    """
    how = {field.name for field in dataclasses.fields(Run)}
    run = run_of({key: value for key, value in options.items() if key in how})
    wanted = {key: value for key, value in options.items() if key not in how}
    if recipe is None:
        data = scored_data(run.scores) if run.scores is not None else {}
    elif isinstance(recipe, Recipe):
        data = recipe.resolved()
    else:
        data = dict(recipe) if isinstance(recipe, dict) else load_data(str(recipe))
    return {**data, **wanted}, run


def run_of(options: Options) -> Run:
    """Read the options of how to run.

    Raises:
        RequestError: there is no such option, or it cannot have this value.
    """
    known = {field.name for field in dataclasses.fields(Run)}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise RequestError(unknown[0], f"there is no such option; there are {', '.join(sorted(known))}")
    try:
        run = TypeAdapter(Run).validate_python(options)
    except ValidationError as error:
        raise sentence(error) from error
    if run.folder is not None:
        _require_path(run.folder)
    return run


def _require_path(out: Path) -> None:
    """Refuse a name that no file can have.

    Raises:
        RequestError: it says why.
    """
    try:
        out.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(
            "out", f"{str(out)[:80]!r} cannot be written: {why}; name another folder"
        ) from error
