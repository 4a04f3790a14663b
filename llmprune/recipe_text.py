"""Recipes as text: YAML files, shipped recipes, and the options of a command line."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from llmprune import plugins
from llmprune.errors import RequestError
from llmprune.methods.base import Method
from llmprune.paths import existing
from llmprune.recipe import Recipe

HERE = Path(__file__).parent
SHIPPED = HERE / "recipes" if (HERE / "recipes").is_dir() else HERE.parent / "recipes"
METHODS = "llmprune.methods"
SUFFIXES = (".yaml", ".yml")
WHOLE = r"[-+]?(?:0|[1-9][0-9]*)$"
DECIMAL = r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"


class _Loader(yaml.SafeLoader):
    """YAML without base-sixty numbers, so that a bare 2:4 is text."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp)
        for tag, regexp in resolvers
        if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(WHOLE), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(DECIMAL), list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for a number."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def write_yaml(data: object) -> str:
    """Data as YAML that `read_yaml` reads back."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False)
    return text


def read_yaml(text: str) -> Any:
    """The data of a YAML text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError("recipe", f"not YAML: {' '.join(str(error).split())}") from error


def shipped() -> list[str]:
    """The names of the recipes that come with llmprune."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def is_recipe(name: str) -> bool:
    """Whether a word names a recipe rather than a model."""
    return name.endswith(SUFFIXES) or name in shipped()


def load_data(name: str) -> dict[str, Any]:
    """The data of a shipped recipe, by its name, or of a YAML file."""
    path = SHIPPED / f"{name}.yaml" if name in shipped() else existing(name)
    if path is None or not path.is_file():
        raise RequestError("recipe", f"{name!r} is no file and no shipped recipe ({', '.join(shipped())})")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError("recipe", f"{path} cannot be read as text: {error}") from error
    data = read_yaml(text)
    if not isinstance(data, dict):
        raise RequestError("recipe", f"{path} is not a mapping")
    return data


def override(data: dict[str, Any], key: str, value: object) -> None:
    """Set `a.b` in nested data; a part given by its name alone becomes a mapping."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(data.get(parent), dict):
            data[parent] = {"name": data[parent]} if data.get(parent) is not None else {}
        data = data[parent]
    data[last] = value


def from_words(words: dict[str, Any], otherwise: dict[str, Any] | None = None) -> tuple[str, Recipe]:
    """The model's name, and the recipe that a command's options describe.

    Args:
        words: options by their names; None where the user gave none. `set_` holds `key=value` texts.
    """
    name, recipe = words["model"], words.get("recipe")
    if is_recipe(name) and not Path(name).is_dir():
        if recipe is not None:
            raise RequestError("recipe", f"both {name} and --recipe {recipe} are recipes; give one")
        recipe = name
    data = load_data(recipe) if recipe is not None else dict(otherwise or {})
    name = data.get("model") if recipe == name else name
    if not name:
        raise RequestError("model", f"the recipe {recipe} names none; give one before --recipe {recipe}")
    fields = ("method", "pattern", "sparsity", "allocation", "repair", "layout", "recovery", "propagation")
    plain = {key: words.get(key) for key in fields}
    for key, value in plain.items():
        if value is not None:
            data[key] = value
    if words.get("policy") is not None:
        data.setdefault("method", _method_with("policy"))
    nested = {f"calibration.{key}": value for key, value in text_words(words).items()}
    nested["pattern.multiple"] = words.get("multiple")
    nested["method.policy"] = words.get("policy")
    for key, value in nested.items():
        if value is not None:
            override(data, key, value)
    for key, value in assigned(words.get("set_")).items():
        override(data, key, value)
    return name, Recipe.parse(data)


def _method_with(option: str) -> str:
    """The shipped method that has an option."""
    for name in plugins.names(METHODS):
        if option in {field.name for field in dataclasses.fields(plugins.find(METHODS, name, Method))}:
            return name
    raise RequestError(option, "no shipped method has it; name one with --method")


def text_words(words: dict[str, Any]) -> dict[str, Any]:
    """What the options of a command say about the calibration text."""
    found = {key: words.get(key) for key in ("samples", "length", "seed", "text_column")}
    found["dataset"] = words.get("calibration")
    return {key: value for key, value in found.items() if value is not None}


def assigned(words: list[str] | None) -> dict[str, Any]:
    """What `--set key=value` says, with the values read as YAML."""
    found = {}
    for word in words or []:
        key, is_, value = word.partition("=")
        if not is_:
            raise RequestError("set", f"{word!r} is not key=value")
        found[key] = read_yaml(value)
    return found
