"""A recipe is checked whole before anything is read, and every complaint names its field."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llmprune.errors import RequestError
from llmprune.recipe import Recipe
from llmprune.recipe.text import is_recipe, load_data, override, read_yaml, shipped
from llmprune.run.asked import request

LARGE = 10**400

WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no method": ({}, "method", "none was given"),
    "unknown method": ({"method": "wandas"}, "method", "did you mean 'wanda'"),
    "far from any method": ({"method": "qqqq"}, "method", "there are: "),
    "method without a name": ({"method": {"damping": 0.1}}, "method", "mapping with a `name`"),
    "method that is a number": ({"method": 5}, "method", "5 is neither"),
    "module that is not there": ({"method": "no_such_package.mine"}, "method", "cannot import"),
    "module without a method": ({"method": "json.decoder"}, "method", "must define one Method"),
    "relative module": ({"method": ".wanda"}, "method", ".wanda"),
    "unknown method option": (
        {"method": {"name": "sparsegpt", "dampening": 0.1}},
        "method.dampening",
        "no such option",
    ),
    "method option of a wrong kind": (
        {"method": {"name": "sparsegpt", "damping": "much"}},
        "method.damping",
        "much",
    ),
    "method option out of range": (
        {"method": {"name": "sparsegpt", "block_size": 0}},
        "method.block_size",
        "greater",
    ),
    "method option that is none of the choices": (
        {"method": {"name": "sparsegpt", "precision": "float16"}},
        "method.precision",
        "float16",
    ),
    "method option whose name is a number": ({"method": {"name": "wanda", 5: 1}}, "method.5", "strings"),
    "repair of loose weights": ({"method": "wanda", "repair": "affine"}, "repair", "whole units"),
    "unknown repair": ({"method": "flap", "repair": "afine"}, "repair", "did you mean 'affine'"),
    "ridge of nothing": (
        {"method": "flap", "repair": {"name": "affine", "ridge": 0}},
        "repair.ridge",
        "greater",
    ),
    "layout of loose weights": ({"method": "wanda", "layout": "padded"}, "layout", "whole units"),
    "refined masks of whole units": (
        {"method": "flap", "recovery": "refine"},
        "recovery",
        "serves single weights",
    ),
    "recovery that is a number": ({"method": "flap", "recovery": 5}, "recovery", "neither a name"),
    "unknown layout": ({"method": "flap", "layout": "ragged"}, "layout", "ragged"),
    "one size for blocks that differ": (
        {"method": "flap", "layout": "uniform"},
        "layout",
        "--allocation uniform, or --layout per_layer",
    ),
    "steps before that are no list": ({"method": "wanda", "before": 3}, "before", "a list of recipes"),
    "loose weights of a method for units": ({"method": "flap", "pattern": "2:4"}, "pattern", "whole units"),
    "units of a method for weights": (
        {"method": "sparsegpt", "pattern": "units"},
        "pattern",
        "single",
    ),
    "budget of units for loose weights": (
        {"method": "wanda", "allocation": "global_threshold"},
        "allocation",
        "cannot share out weights",
    ),
    "budget of loose weights for units": ({"method": "flap", "allocation": "owl"}, "allocation", "units"),
    "multiple of nothing": (
        {"method": "flap", "pattern": {"name": "units", "multiple": 0}},
        "pattern.multiple",
        "greater",
    ),
    "ridge by another word": (
        {"method": "flap", "repair": {"name": "affine", "ridge": "heldout"}},
        "repair.ridge",
        "a valid number, or 'held_out' (found 'heldout')",
    ),
    "two other words": (
        {"method": {"name": "sparsegpt", "precision": "int8", "order": "tulip"}},
        "method.precision",
        "input should be 'float64' or 'float32' (found 'int8')",
    ),
    "ridge without end": (
        {"method": "flap", "repair": {"name": "affine", "ridge": float("inf")}},
        "repair.ridge",
        "finite",
    ),
    "profile that is not there": (
        {"method": "flap", "allocation": {"name": "profile", "blocks": "nowhere.yaml"}},
        "allocation.blocks",
        "nowhere.yaml",
    ),
    "profile with a share of 1": (
        {"method": "flap", "allocation": {"name": "profile", "blocks": [0.5, 1.0]}},
        "allocation.blocks",
        "less than 1",
    ),
    "2:4 with another sparsity": (
        {"method": "wanda", "pattern": "2:4", "sparsity": 0.3},
        "sparsity",
        "removes exactly 0.5",
    ),
    "2:4 with text for a sparsity": (
        {"method": "wanda", "pattern": "2:4", "sparsity": "abc"},
        "sparsity",
        "abc",
    ),
    "2:4 with no number": (
        {"method": "wanda", "pattern": "2:4", "sparsity": math.nan},
        "sparsity",
        "nan",
    ),
    "2:4 with a sparsity beyond floats": (
        {"method": "wanda", "pattern": "2:4", "sparsity": LARGE},
        "sparsity",
        "",
    ),
    "sparsity above 1": ({"method": "wanda", "sparsity": 1.5}, "sparsity", "1.5"),
    "sparsity of 1": ({"method": "wanda", "sparsity": 1}, "sparsity", "less than 1"),
    "sparsity below 0": ({"method": "wanda", "sparsity": -0.1}, "sparsity", "-0.1"),
    "sparsity in words": ({"method": "wanda", "sparsity": "abc"}, "sparsity", "abc"),
    "sparsity that is no number": ({"method": "wanda", "sparsity": math.nan}, "sparsity", "nan"),
    "keeping all": ({"method": "wanda", "pattern": "4:4"}, "pattern", "N must be"),
    "keeping more than all": ({"method": "wanda", "pattern": "5:4"}, "pattern", "N must be"),
    "keeping none": ({"method": "wanda", "pattern": "0:4"}, "pattern", "N must be"),
    "unknown pattern": (
        {"method": "wanda", "pattern": "stripes"},
        "pattern",
        "allowed: N:M such",
    ),
    "pattern that is a number": ({"method": "wanda", "pattern": 124}, "pattern", "124"),
    "pattern option": (
        {"method": "wanda", "pattern": {"name": "2:4", "compete": "row"}},
        "pattern.compete",
        "no such option",
    ),
    "two pattern options": (
        {"method": "wanda", "pattern": {"name": "2:4", "a": 1, 2: 3}},
        "pattern.a",
        "no such option",
    ),
    "unknown unstructured option": (
        {"method": "wanda", "pattern": {"name": "unstructured", "compet": "row"}},
        "pattern.compet",
        "no such option",
    ),
    "unknown competition": (
        {"method": "wanda", "pattern": {"name": "unstructured", "compete": "column"}},
        "pattern.compete",
        "column",
    ),
    "owl with 2:4": ({"method": "wanda", "pattern": "2:4", "allocation": "owl"}, "allocation", "use uniform"),
    "erk with 2:4": ({"method": "wanda", "pattern": "2:4", "allocation": "erk"}, "allocation", "use uniform"),
    "global with 2:4": (
        {"method": "wanda", "pattern": "2:4", "allocation": "global"},
        "allocation",
        "use uniform",
    ),
    "global with sparsegpt": (
        {"method": "sparsegpt", "allocation": "global"},
        "allocation",
        "decides while it prunes",
    ),
    "unknown allocation": ({"method": "wanda", "allocation": "owls"}, "allocation", "did you mean 'owl'"),
    "unknown allocation option": (
        {"method": "wanda", "allocation": {"name": "owl", "lambda": 1}},
        "allocation.lambda",
        "no such option",
    ),
    "owl's band too wide": (
        {"method": "wanda", "allocation": {"name": "owl", "spread": 0.5}},
        "allocation.spread",
        "less than 0.5",
    ),
    "unknown propagation": ({"method": "wanda", "propagation": "site"}, "propagation", "'layer'"),
    "unknown target": ({"method": "admm", "target": "sparse"}, "target", "'pruned'"),
    "dense target of whole units": (
        {"method": "flap", "target": "dense"},
        "target",
        "serves single weights",
    ),
    "dense target without layers in turn": (
        {"method": "admm", "target": "dense", "propagation": "block"},
        "target",
        "layer propagation",
    ),
    "wrong key": ({"method": "wanda", "sparcity": 0.5}, "sparcity", "no such option"),
    "key that is a number": ({"method": "wanda", 5: 1}, "5", "strings"),
    "version 0": ({"method": "wanda", "version": 0}, "version", "greater"),
    "model that is a number": ({"method": "wanda", "model": 5}, "model", "string"),
    "wrong calibration key": (
        {"method": "wanda", "calibration": {"sample": 4}},
        "calibration.sample",
        "no such option",
    ),
    "no samples": ({"method": "wanda", "calibration": {"samples": 0}}, "calibration.samples", "0"),
    "windows of one token": ({"method": "wanda", "calibration": {"length": 1}}, "calibration.length", "1"),
    "negative seed": ({"method": "wanda", "calibration": {"seed": -1}}, "calibration.seed", "-1"),
    "seed in words": ({"method": "random", "calibration": {"seed": "x"}}, "calibration.seed", "x"),
    "data set that is a number": (
        {"method": "wanda", "calibration": {"dataset": 4}},
        "calibration.dataset",
        "4",
    ),
    "calibration that is a list": ({"method": "wanda", "calibration": ["c4"]}, "calibration", "c4"),
}


@pytest.mark.parametrize(("data", "field", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_by_its_field(data: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(RequestError) as raised:
        Recipe.parse(data)
    assert raised.value.field == field
    assert str(raised.value).startswith(f"{field}: ")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_field_has_a_wrong_value_here() -> None:
    fields = {field.split(".")[0] for _, field, _ in WRONG.values()}
    assert set(Recipe.model_fields) <= fields


NOT_YAML = {
    "an open bracket": "[",
    "a tab": "method:\n\t- wanda",
    "a month 13": "method: wanda\nmodel: 2020-13-45",
    "digits beyond counting": "sparsity: " + "1" * 5000,
    "brackets beyond counting": "[" * 5000,
    "a tag": "method: !!python/object:os.system {}",
}


@pytest.mark.parametrize("text", NOT_YAML.values(), ids=NOT_YAML)
def test_a_file_that_is_not_yaml_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RequestError, match=r"^recipe: ") as raised:
        load_data(str(file))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"method: \xff\xfe\x80")
    with pytest.raises(RequestError, match=r"^recipe: "):
        load_data(str(file))


@pytest.mark.parametrize("text", ["- wanda", "wanda", "", "5"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RequestError, match="is not a mapping"):
        load_data(str(file))


@pytest.mark.parametrize("name", ["absent.yaml", "~nobody_of_that_name/absent.yaml"])
def test_a_file_that_is_not_there_is_refused(name: str) -> None:
    assert is_recipe(name)
    with pytest.raises(RequestError, match="is no file and no shipped recipe"):
        load_data(name)


VALUES = [
    ("2:4", "2:4"),
    ("16:32", "16:32"),
    ("1:30:00", "1:30:00"),
    ("1e-3", 0.001),
    ("1E3", 1000.0),
    ("0.5", 0.5),
    (".5", 0.5),
    ("-2", -2),
    ("+7", 7),
    ("08", "08"),
    ("1.", 1.0),
    ("8GiB", "8GiB"),
    ("1.5.2", "1.5.2"),
    ("12abc", "12abc"),
    ("1_000", "1_000"),
    ("true", True),
    ("~", None),
    ("wanda", "wanda"),
    ("'5'", "5"),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_yaml_values_are_read_as_they_look(text: str, value: object) -> None:
    found = read_yaml(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_recipe_file_of_a_few_lines_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: {name: sparsegpt, damping: 1e-3}\npattern: 2:4\ncalibration: {samples: 4}\n")
    recipe, run = request(str(file), {"out": "there", "propagation": "block"})
    assert recipe.method.damping == 0.001
    assert str(recipe.pattern) == "2:4"
    assert recipe.sparsity == 0.5
    assert recipe.calibration.samples == 4
    assert recipe.propagation == "block"
    assert run.out == "there"


def test_the_seed_of_the_calibration_is_that_of_a_random_method() -> None:
    assert Recipe.parse({"method": "random", "calibration": {"seed": 7}}).method.seed == 7
    own = {"method": {"name": "random", "seed": 3}, "calibration": {"seed": 7}}
    assert Recipe.parse(own).method.seed == 3


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe.parse({"method": "wanda"}).sparsity = 0.7


def test_set_reaches_into_parts_that_were_given_by_name() -> None:
    data: dict[str, Any] = {"method": "sparsegpt"}
    override(data, "method.damping", 0.2)
    override(data, "calibration.samples", 4)
    override(data, "sparsity", 0.25)
    assert data == {
        "method": {"name": "sparsegpt", "damping": 0.2},
        "calibration": {"samples": 4},
        "sparsity": 0.25,
    }
    assert Recipe.parse(data).method.damping == 0.2


def test_options_of_a_part_without_a_name_are_those_of_the_method_s_own() -> None:
    asked = {"method": "cfsp", "allocation": {"temperature": 3}, "repair": {}}
    found = Recipe.parse(asked).resolved()
    assert found["allocation"] == {"name": "block_influence", "temperature": 3}
    assert found["repair"] == {"name": "none"}


def test_set_replaces_what_was_there() -> None:
    data: dict[str, Any] = {"method": {"name": "sparsegpt", "damping": 0.2}, "sparsity": 0.5}
    override(data, "method.damping", 0.3)
    override(data, "method", "wanda")
    override(data, "sparsity", 0.1)
    assert data == {"method": "wanda", "sparsity": 0.1}


@pytest.mark.parametrize(
    "key", ["metod", "method.dampening", "calibration.sample", "sparsity.x", "", ".", "a..b"]
)
def test_set_to_a_key_that_is_not_there_is_refused(key: str) -> None:
    data: dict[str, Any] = {"method": "sparsegpt", "sparsity": 0.5}
    override(data, key, 1)
    with pytest.raises(RequestError) as raised:
        Recipe.parse(data)
    assert key.split(".")[0] in raised.value.field


def test_the_hash_tells_recipes_apart_and_stays() -> None:
    one = Recipe.parse({"method": "wanda"})
    assert one.hash == Recipe.parse({"method": {"name": "wanda"}, "sparsity": 0.5}).hash
    others = [
        {"method": "magnitude"},
        {"method": "wanda", "pattern": "2:4"},
        {"method": "wanda", "sparsity": 0.25},
        {"method": "wanda", "allocation": "owl"},
        {"method": "wanda", "propagation": "block"},
        {"method": "wanda", "calibration": {"seed": 1}},
        {"method": "wanda", "pattern": "units"},
        {"method": "wanda", "pattern": "units", "repair": "affine"},
        {"method": "wanda", "pattern": "units", "layout": "padded"},
    ]
    assert len({one.hash, *(Recipe.parse(other).hash for other in others)}) == 1 + len(others)
    assert one.hash == Recipe.parse({"method": "wanda"}).hash
    assert len(one.hash) == 64


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_is_read(name: str) -> None:
    asked = Recipe.parse(load_data(name))
    assert Recipe.parse(asked.resolved()) == asked
