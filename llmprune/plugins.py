"""A name in a recipe is the name of a file or a package: `method: wanda` is `llmprune/methods/wanda.py`."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llmprune.errors import RequestError

Options = Mapping[str, object]  # a mapping of a recipe, as YAML or JSON gives it
OPTIONS = ConfigDict(extra="forbid", allow_inf_nan=False)  # how the options of every part are read
T = TypeVar("T")


def names(package: str) -> list[str]:
    """The names that can be asked for: every module of the package but its base."""
    return sorted(m.name for m in pkgutil.iter_modules(import_module(package).__path__) if m.name != "base")


def find(package: str, name: str, base: type[T]) -> type[T]:
    """The one public subclass of `base` that the module `name` of `package` defines.

    A dotted name reaches a module outside the package.

    Raises:
        ValueError: there is no such module, or it does not define exactly one such class.
    """
    known = names(package)
    if name not in known and "." not in name:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        kind = base.__name__.lower()
        raise ValueError(f"no {kind} is called {name!r}{hint} (there are: {', '.join(known)})")
    path = name if "." in name else f"{package}.{name}"
    try:
        module = import_module(path)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"cannot import {path!r}: {error}") from error
    classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    found = [c for c in classes if issubclass(c, base) and not c.__name__.startswith("_")]
    if len(found) != 1:
        raise ValueError(f"{path} must define one {base.__name__}, and defines {len(found)}")
    return found[0]


def build(field: str, package: str, value: object, base: type[T], defaults: Options | None = None) -> T:
    """The part that a name, or a mapping of its name and options, asks for.

    Args:
        field: of the recipe, for messages.
        package: where its files are.
        value: a name, a mapping, or the part itself.
        base: class of such parts.
        defaults: options that are set where the part has them and `value` does not.

    Raises:
        RequestError: there is no such part, or it has no such option.
    """
    if isinstance(value, base):
        return value
    options = dict(value) if isinstance(value, dict) else {"name": value}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RequestError(field, f"{value!r} is neither a name nor a mapping with a `name`")
    try:
        part = find(package, name, base)
    except ValueError as error:
        raise RequestError(field, str(error)) from error
    known = {f.name for f in dataclasses.fields(part)}  # type: ignore[arg-type]
    usual = {key: default for key, default in (defaults or {}).items() if key in known}
    try:
        return TypeAdapter(part).validate_python({**usual, **options})
    except ValidationError as error:
        raise sentence(error, field) from error


def name_of(part: object) -> str:
    """The name under which a recipe asks for a part."""
    module = type(part).__module__
    return module.rsplit(".", 1)[-1] if module.startswith("llmprune.") else module


def plain(part: object) -> dict[str, Any]:
    """A part as a recipe writes it, with every default filled in."""
    return {"name": name_of(part), **dataclasses.asdict(part)}  # type: ignore[call-overload]


def about(part: type) -> str:
    """What a part says of itself: the first paragraph of its file."""
    text = import_module(part.__module__).__doc__ or ""
    return " ".join(text.split("\n\n")[0].split())


def sentence(error: ValidationError, prefix: str = "") -> RequestError:
    """The first thing that a check found wrong, as one sentence."""
    first, *others = error.errors()
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return cause
    place = [str(part) for part in first["loc"]]
    unknown = first["type"] in ("extra_forbidden", "unexpected_keyword_argument")
    if not unknown:  # of several types that are allowed, pydantic names the one that it tried
        place = [part for part in place if not part.startswith(("constrained-", "literal["))]
    field = ".".join([prefix] * bool(prefix) + place)
    found = "" if unknown or first["type"] == "missing" else f" (found {first['input']!r})"
    message = "there is no such option" if unknown else first["msg"].partition(" or an instance of ")[0]
    message = message.partition(", unable to parse")[0].replace("a dictionary", "a mapping")
    for one in others:
        *same, kind = one["loc"]
        if tuple(same) == first["loc"][:-1] and str(kind).startswith("literal["):  # a word that serves, too
            message += f", or {one['ctx']['expected']}"
    return RequestError(field or "recipe", message[0].lower() + message[1:] + found)
