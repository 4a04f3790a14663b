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
from llmprune.plugins import Options
from llmprune.recipe.parts import METHODS, method_of
from llmprune.recipe.recipe import Recipe
from llmprune.walk import scores

HERE = Path(__file__).parents[1]
SHIPPED = HERE / "recipes" if (HERE / "recipes").is_dir() else HERE.parent / "recipes"
SUFFIXES = (".yaml", ".yml")
WHOLE = r"[-+]?(?:0|[1-9][0-9]*)$"
RECIPE = ("method", "pattern", "sparsity", "allocation", "repair", "layout", "propagation")
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


def scored_data(folder: str | Path) -> dict[str, Any]:
    """The data of the recipe that scores were measured for."""
    return scores.read(Path(folder).expanduser()).asked


def override(data: dict[str, Any], key: str, value: object) -> None:
    """Set `a.b` in nested data; a part given by its name alone becomes a mapping."""
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(data.get(parent), list):
            raise RequestError(key, f"{parent} is a list, of which nothing can be set; change the recipe")
        if not isinstance(data.get(parent), dict):
            data[parent] = {"name": data[parent]} if data.get(parent) is not None else {}
        data = data[parent]
    data[last] = value


def from_options(options: Options, method: str | None = None) -> tuple[str, Recipe]:
    """The model's name, and the recipe that a command's options describe; as `data_from_options`."""
    model, data = data_from_options(options, method)
    return model, Recipe.parse(data)


def data_from_options(options: Options, method: str | None = None) -> tuple[str, dict[str, Any]]:
    """The same with the recipe's data, as it was given.

    Args:
        options: of the command by their names, None where the user gave none. `set_` holds `key=value` texts.
        method: the one where neither is named, nor a recipe or a pattern that has one.

    Raises:
        RequestError: the options contradict one another, or the recipe is wrong.
    """
    name, recipe = str(options["model"]), options["recipe"]
    if is_recipe(name) and not Path(name).is_dir():
        if recipe is not None:
            raise RequestError("recipe", f"both {name} and --recipe {recipe} are recipes; give one")
        recipe = name
    data = load_data(str(recipe)) if recipe is not None else _scored(options)
    model = data.get("model") if recipe == name else name
    if not model:
        raise RequestError("model", f"the recipe {recipe} names none; give one before --recipe {recipe}")
    for key in RECIPE:
        if options[key] is not None:
            data[key] = options[key]
    if options.get("recovery") is not None:  # a plan has none
        data["recovery"] = options["recovery"]
    if options["policy"] is not None:
        data.setdefault("method", _method_with("policy"))
    if recipe is None and data.get("method") is None and method_of(data.get("pattern")) is None:
        data["method"] = method
    nested = {f"calibration.{key}": value for key, value in text_options(options).items()}
    nested |= {"pattern.multiple": options["multiple"], "method.policy": options["policy"]}
    asked = {key: value for key, value in nested.items() if value is not None} | set_options(options)
    for key, value in asked.items():
        override(data, key, value)
    return str(model), data


def _scored(options: Options) -> dict[str, Any]:
    """What a recipe is taken from where none is named: the scores that are pruned from, if any."""
    folder = options.get("scores")
    return scored_data(str(folder)) if folder is not None else {}


def _method_with(option: str) -> str:
    """The shipped method that has an option."""
    for name in plugins.names(METHODS):
        if option in {field.name for field in dataclasses.fields(plugins.find(METHODS, name, Method))}:
            return name
    raise RequestError(option, "no shipped method has it; name one with --method")


def text_options(options: Options) -> dict[str, object]:
    """The fields of a recipe's `calibration` that a command's options set."""
    found = {key: options[key] for key in ("samples", "length", "seed", "bos", "text_column")}
    found["dataset"] = options["calibration"]
    return {key: value for key, value in found.items() if value is not None}


def set_options(options: Options) -> dict[str, object]:
    """The options that `--set key=value` sets, with the values read as YAML.

    Raises:
        RequestError: one is not `key=value`, or its value is not YAML.
    """
    found, words = {}, options["set_"]
    for word in words if isinstance(words, list | tuple) else ():
        key, is_, value = str(word).partition("=")
        if not is_:
            raise RequestError("set", f"{word!r} is not key=value")
        found[key] = read_yaml(value)
    return found
