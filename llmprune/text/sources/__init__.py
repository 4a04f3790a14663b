"""Text sources: one file per source, found by its name, or by the form of a path or a Hub id."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from pydantic import TypeAdapter, ValidationError

from llmprune import plugins
from llmprune.errors import RequestError
from llmprune.paths import existing
from llmprune.plugins import sentence
from llmprune.text.sources.base import OPTION, Amount, Documents, Half, TextSource
from llmprune.text.sources.file import SUFFIXES
from llmprune.text.sources.table import FORMATS


def for_calibration(dataset: str, options: Mapping[str, object] | None = None) -> TextSource:
    """Build the text source that `calibration.dataset` names, with its options.

    Raises:
        RequestError: no such source exists, or it has no such option; the error names the recipe's field.
    """
    cls = source_class(dataset)
    known = [field.name for field in dataclasses.fields(Amount)] + cls.option_names()
    _require_known(dataset, options or {}, known, "calibration.")
    try:
        return TypeAdapter(cls).validate_python({**(options or {}), "dataset": dataset})
    except ValidationError as error:
        raise sentence(error, "calibration") from error


def for_evaluation(dataset: str, column: str | None = None) -> Documents:
    """Build the text source that `--perplexity` names.

    Args:
        dataset: as in a recipe; it must be a source of documents.
        column: of a table, that holds the text; None for the default column.

    Raises:
        RequestError: no such text exists, or `column` is given for a text without columns.
    """
    cls = source_class(dataset, "evaluation")
    options = {} if column is None else {"text_column": column}
    _require_known(dataset, options, cls.option_names(), "")
    assert issubclass(cls, Documents)
    return cls(dataset, **options)


def source_class(dataset: str, half: Half = "calibration") -> type[TextSource]:
    """Return the class of the text source that a name, a path or a Hub id stands for.

    A dotted name stands for a module outside the package.

    Raises:
        RequestError: no such source exists, or it yields no documents and `half` is `evaluation`.
    """
    base = TextSource if half == "calibration" else Documents
    # Names that are not a source for this half are left out, so the message below never suggests them.
    every = {name: plugins.find(__name__, name, TextSource) for name in plugins.names(__name__)}
    known = {name: cls for name, cls in every.items() if issubclass(cls, base)}
    lists = {name: known[name] for name in ("typos", "mix", "several", "answers") if name in known}
    known = lists | known  # these first: `a.txt,b.txt` ends like a file
    for cls in known.values():
        if cls.matches(dataset):
            return cls
    names = ", ".join(name for name, cls in known.items() if cls.matches(name))
    files = ", ".join((*SUFFIXES, *FORMATS))
    unknown = f"{dataset!r} is not {names}, a file ({files}) or a Hub id"
    if not _is_module(dataset):
        raise RequestError(OPTION[half], unknown)
    try:
        return plugins.find(__name__, dataset, base)
    except ValueError as error:
        raise RequestError(OPTION[half], f"{unknown}, and as a module: {error}") from error


def _is_module(dataset: str) -> bool:
    """Return whether this can be the dotted name of a module, and is not an existing path."""
    parts = dataset.split(".")
    return len(parts) > 1 and all(map(str.isidentifier, parts)) and not existing(dataset)


def _require_known(dataset: str, options: Collection[str], known: list[str], prefix: str) -> None:
    """Check the names of the options here: pydantic's own message would not list what exists."""
    for name in options:
        if name not in known:
            raise RequestError(
                f"{prefix}{name}",
                f"there is no such option for the text {dataset}; leave it out "
                f"(there are: {', '.join(known) or 'none'})",
            )
