"""The parts that a recipe names, and which of them go together."""

from __future__ import annotations

from typing import Any

from llmprune import plugins
from llmprune.allocation.base import Allocator
from llmprune.errors import RequestError
from llmprune.methods.base import PruningMethod
from llmprune.model.sites.base import sites_of
from llmprune.patterns import base as patterns
from llmprune.patterns.base import Pattern
from llmprune.recovery.base import Recovery

METHODS, ALLOCATIONS = "llmprune.methods", "llmprune.allocation"
SERVED = {
    "weights": "single weights",
    "units": "whole units",
    "experts": "whole experts",
    "blocks": "whole blocks",
    "rows": "rows of the vocabulary",
}


def with_method(data: object) -> dict[str, Any]:
    """A recipe's data with its method: the pattern's own where none is asked for.

    Where whole blocks go, the criterion is an allocation, and can be asked for as the method.

    Raises:
        RequestError: there is no method.
    """
    data = dict(data) if isinstance(data, dict) else {}
    asked = data.get("method")
    part = asked if isinstance(asked, dict) else {"name": asked}
    name = part.get("name")
    if asked is None:
        data["method"] = method_of(data.get("pattern"))
    elif name in plugins.names(ALLOCATIONS) and name not in plugins.names(METHODS):
        serves = plugins.find(ALLOCATIONS, str(name), Allocator).serves
        if "blocks" in serves:
            data |= {"method": "whole", "allocation": _criterion(part, data)}
    if data.get("method") is None:
        raise RequestError("method", "none was given; `llmprune methods` lists them")
    return data


def method_of(pattern: object) -> str | None:
    """The method that goes with a pattern where none is asked for."""
    if isinstance(pattern, Pattern):
        return pattern.method
    word = pattern.get("name") if isinstance(pattern, dict) else pattern
    return patterns.class_of(word).method if isinstance(word, str) else None


def _criterion(asked: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The criterion of whole blocks with its options, which `allocation` may hold too.

    Raises:
        RequestError: another allocation, or a pattern of another kind, was asked as well.
    """
    name, other, pattern = asked["name"], data.get("allocation"), data.get("pattern")
    options = {"name": other} if isinstance(other, str) else other or {}
    if options.get("name", name) != name:
        raise RequestError("allocation", f"{options['name']} and the method {name} were asked; give one")
    if pattern is not None and "blocks" not in sites_of(built := patterns.build(pattern, {})).shares:
        raise RequestError("pattern", f"{name} chooses whole blocks, and {built} was asked; use blocks")
    return {**asked, **options}


def fitting(method: PruningMethod) -> str:
    """Patterns that a method can prune by, in words."""
    words = {"weights": "unstructured or N:M", "rows": "vocabulary"}
    return " or ".join(words.get(kind, kind) for kind in method.serves)


def recovery_of(value: object) -> Recovery:
    """The recovery that a name, or a mapping of its name and options, asks for.

    Raises:
        RequestError: there is none of that name, or it has no such option.
    """
    return plugins.build("recovery", "llmprune.recovery", value, Recovery)


def with_default(value: object, name: str) -> object:
    """A mapping of options with this name, unless it has one."""
    return {"name": name, **value} if isinstance(value, dict) else value
