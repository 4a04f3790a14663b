"""A name in a recipe is the name of a file or a package: `method: wanda` is `llmprune/methods/wanda.py`."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
from importlib import import_module
from typing import TypeVar

from pydantic import ConfigDict

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


def about(part: type) -> str:
    """What a part says of itself: the first paragraph of its file."""
    text = import_module(part.__module__).__doc__ or ""
    return " ".join(text.split("\n\n")[0].split())
