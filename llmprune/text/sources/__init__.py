"""Where tokens come from: one file per text source, looked up by its name, or by what a path or an id is."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import TypeAdapter, ValidationError

from llmprune import plugins
from llmprune.errors import RequestError
from llmprune.paths import existing
from llmprune.plugins import sentence
from llmprune.text.sources.base import OPTION, Amount, Documents, Half, TextSource
from llmprune.text.sources.file import SUFFIXES
from llmprune.text.sources.table import FORMATS


def calibrating(dataset: str, options: dict[str, Any] | None = None) -> TextSource:
    """The text source that `calibration.dataset` asks for, with its options.

    Raises:
        RequestError: there is none, or it has no such option; it names the field of the recipe.
    """
    cls = kind(dataset)
    known = [field.name for field in dataclasses.fields(Amount)] + cls.option_names()
    _require_known(dataset, options or {}, known, "calibration.")
    try:
        return TypeAdapter(cls).validate_python({**(options or {}), "dataset": dataset})
    except ValidationError as error:
        raise sentence(error, "calibration") from error


def evaluating(dataset: str, column: str | None = None) -> Documents:
    """The text that `--perplexity` asks for.

    Args:
        dataset: as in a recipe; texts only.
        column: of a table, that holds the text; its default unless given.

    Raises:
        RequestError: there is no such text, or it has no columns.
    """
    cls = kind(dataset, "evaluation")
    options = {} if column is None else {"text_column": column}
    _require_known(dataset, options, cls.option_names(), "")
    assert issubclass(cls, Documents)
    return cls(dataset, **options)


def kind(dataset: str, half: Half = "calibration") -> type[TextSource]:
    """The class of the text source that a name, a path or a Hub id asks for.

    A dotted name reaches a module outside the package.

    Raises:
        RequestError: there is none, or none that is a text where one is to be evaluated.
    """
    base = TextSource if half == "calibration" else Documents
    every = {name: plugins.find(__name__, name, TextSource) for name in plugins.names(__name__)}
    known = {name: cls for name, cls in every.items() if issubclass(cls, base)}
    known = {"several": every["several"], **known}  # first: `a.txt,b.txt` ends like a file
    for cls in known.values():
        if cls.answers_to(dataset):
            return cls
    names = ", ".join(name for name, cls in known.items() if cls.answers_to(name))
    files = ", ".join((*SUFFIXES, *FORMATS))
    unknown = f"{dataset!r} is not {names}, a file ({files}) or a Hub id"
    if not _is_module(dataset):
        raise RequestError(OPTION[half], unknown)
    try:
        return plugins.find(__name__, dataset, base)
    except ValueError as error:
        raise RequestError(OPTION[half], f"{unknown}, and as a module: {error}") from error


def _is_module(dataset: str) -> bool:
    """Whether it can be the dotted name of a module, and is not a path."""
    parts = dataset.split(".")
    return len(parts) > 1 and all(map(str.isidentifier, parts)) and not existing(dataset)


def _require_known(dataset: str, options: dict[str, Any], known: list[str], prefix: str) -> None:
    for name in options:
        if name not in known:
            raise RequestError(
                f"{prefix}{name}",
                f"there is no such option for the text {dataset}; leave it out "
                f"(there are: {', '.join(known) or 'none'})",
            )
