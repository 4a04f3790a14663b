"""Any good recipe survives being resolved and written, and any junk is refused in our own words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmprune import plugins
from llmprune.allocation.base import Allocator
from llmprune.errors import RequestError
from llmprune.methods.base import Method
from llmprune.recipe import Recipe
from llmprune.recipe_text import read_yaml, write_yaml
from llmprune.repair.base import Repair
from llmprune.text.calibration import Calibration
from llmprune.text.sources.base import TextSource

LARGE = 10**400
FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

WORDS = st.text(max_size=12)
SHORT = st.sampled_from(["text", "1e3", "08", "2:4", "yes", "~", "null", "2020-01-01", " a", "", ".inf", "é"])
POSITIVE = st.floats(min_value=1e-12, max_value=1e12, allow_subnormal=False)
METHODS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "magnitude": {},
    "wanda": {},
    "random": {"seed": st.integers(0, 2**31 - 1)},
    "sparsegpt": {
        "damping": POSITIVE,
        "block_size": st.integers(1, 4096),
        "precision": st.sampled_from(["float64", "float32"]),
    },
    "flap": {"metric": st.sampled_from(["WIFV", "IFV", "WIFN"]), "square_heads": st.booleans()},
    "cfsp": {"importance": st.sampled_from(["relative", "activation"])},
    "row_norm": {},
    "spectral": {"rounds": st.integers(1, 100)},
    "prunenet": {
        "policy": st.none() | WORDS,
        "passes": st.integers(1, 100),
        "steps": st.integers(1, 100),
        "draws": st.integers(2, 100),
        "share": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "rate": POSITIVE,
        "seed": st.integers(0, 2**31 - 1),
    },
}
ALLOCATIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "uniform": {},
    "erk": {},
    "global": {},
    "owl": {"outlier": POSITIVE, "spread": st.floats(0, 0.5, exclude_max=True)},
    "profile": {"blocks": st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4)},
    "global_threshold": {"per_kind": st.booleans()},
    "block_influence": {"temperature": st.floats(0, 1e6)},
}
FOR_WEIGHTS = ["uniform", "erk", "global", "owl"]
FOR_UNITS = ["uniform", "global_threshold", "block_influence"]
REPAIRS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "none": {},
    "mean_bias": {},
    "least_squares": {"ridge": POSITIVE},
    "affine": {"ridge": POSITIVE},
}
COLUMN = WORDS | SHORT
TEXTS: dict[str, tuple[st.SearchStrategy[str], dict[str, st.SearchStrategy[Any]]]] = {
    "builtin": (st.just("builtin"), {}),
    "wikitext2": (st.just("wikitext2"), {}),
    "c4": (st.just("c4"), {}),
    "file": (WORDS.map("{}x.txt".format) | st.sampled_from(["1e3.md", "~/a b.txt"]), {}),
    "table": (WORDS.map("{}x.jsonl".format) | st.just("/nowhere/2:4.parquet"), {"text_column": COLUMN}),
    "hub": (
        st.sampled_from(["org/name", "a-b/c_d.e", "1/08"]),
        {"text_column": COLUMN, "subset": st.none() | COLUMN, "split": COLUMN},
    ),
    "self": (st.just("self"), {"temperature": POSITIVE}),
    "synthetic": (st.just("synthetic"), {"redraws": st.integers(0, 10**6)}),
}
AMOUNTS = {
    "samples": st.integers(1, 10**6),
    "length": st.none() | st.integers(2, 10**6),
    "seed": st.integers(0, 2**31 - 1),
}
CALIBRATIONS = st.fixed_dictionaries({}, optional=AMOUNTS) | st.one_of(
    st.fixed_dictionaries({"dataset": dataset}, optional=AMOUNTS | options)
    for dataset, options in TEXTS.values()
)


def _named(parts: dict[str, dict[str, st.SearchStrategy[Any]]], names: list[str]) -> st.SearchStrategy[Any]:
    """A part by its bare name, or with some of its options."""
    with_options = [
        st.fixed_dictionaries({"name": st.just(name)}, optional=parts[name]) for name in sorted(names)
    ]
    return st.sampled_from(sorted(names)) | st.one_of(with_options)


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """The data of a recipe that nothing is wrong with."""
    data = {"method": draw(_named(METHODS, list(METHODS)))}
    name = data["method"] if isinstance(data["method"], str) else data["method"]["name"]
    profile = st.fixed_dictionaries({"name": st.just("profile"), **ALLOCATIONS["profile"]})
    only_units = ("flap", "cfsp", "prunenet", "row_norm", "spectral")
    if name in only_units or (name != "sparsegpt" and draw(st.booleans())):
        options = {"multiple": st.integers(1, 512), "parts": st.sampled_from(["all", "attention", "ffn"])}
        data["pattern"] = draw(st.fixed_dictionaries({"name": st.just("units")}, optional=options))
        data["sparsity"] = draw(st.floats(0, 1, exclude_max=True))
        data["allocation"] = draw(_named(ALLOCATIONS, FOR_UNITS) | profile)
        data["repair"] = draw(_named(REPAIRS, list(REPAIRS)))
        even = data["allocation"] in ("uniform", {"name": "uniform"})
        layouts = st.sampled_from(["per_layer", "padded", "uniform"] if even else ["per_layer", "padded"])
        data |= draw(st.fixed_dictionaries({}, optional={"layout": layouts}))
    elif draw(st.booleans()):
        m = draw(st.integers(2, 64))
        data["pattern"] = f"{draw(st.integers(1, m - 1))}:{m}"
        data["allocation"] = draw(_named(ALLOCATIONS, ["uniform"]))
    else:
        fitting = [other for other in FOR_WEIGHTS if other != "global" or name != "sparsegpt"]
        data["allocation"] = draw(_named(ALLOCATIONS, fitting) | profile)
        compete = st.sampled_from(["row", "matrix"])
        unstructured = st.fixed_dictionaries({"name": st.just("unstructured")}, optional={"compete": compete})
        data["pattern"] = draw(st.just("unstructured") | unstructured)
        data["sparsity"] = draw(st.floats(0, 1, exclude_max=True))
    others = {
        "propagation": st.sampled_from(["dense", "block", "layer"]),
        "recovery": st.sampled_from([None, "lora", {"name": "lora", "rank": 4}, "reconstruct"]),
        "model": st.none() | WORDS | SHORT,
        "version": st.integers(1, 9),
        "calibration": CALIBRATIONS,
    }
    return data | draw(st.fixed_dictionaries({}, optional=others))


@pytest.mark.parametrize(
    ("package", "base", "parts"),
    [
        ("llmprune.methods", Method, METHODS),
        ("llmprune.allocation", Allocator, ALLOCATIONS),
        ("llmprune.repair", Repair, REPAIRS),
        ("llmprune.text.sources", TextSource, {name: options for name, (_, options) in TEXTS.items()}),
    ],
)
def test_the_generated_recipes_use_every_part_and_option(package: str, base: Any, parts: Any) -> None:
    options = {
        name: {f.name for f in dataclasses.fields(plugins.find(package, name, base))} - {"dataset"}
        for name in plugins.names(package)
    }
    assert options == {name: set(own) for name, own in parts.items()}
    assert {*AMOUNTS, "source"} == set(Calibration.model_fields)


@FEW
@given(recipes())
def test_a_resolved_recipe_is_the_same_recipe(data: dict[str, Any]) -> None:
    recipe = Recipe.parse(data)
    again = Recipe.parse(recipe.resolved())
    assert again == recipe
    assert again.resolved() == recipe.resolved()
    assert again.hash == recipe.hash


@FEW
@given(recipes())
@example({"method": "wanda", "calibration": {"dataset": "org/name", "text_column": "1e3"}})
@example({"method": "wanda", "calibration": {"dataset": "org/name", "subset": "08"}})
@example({"method": {"name": "sparsegpt", "damping": 1e-05}})
def test_a_written_recipe_is_read_as_the_same_recipe(data: dict[str, Any]) -> None:
    recipe = Recipe.parse(data)
    assert Recipe.parse(read_yaml(write_yaml(recipe.resolved()))) == recipe


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(LARGE)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["wanda", "sparsegpt", "2:4", "unstructured", "owl", "name", ".", ".x", "a.", "json.x"])
)
KEYS = st.text(max_size=8) | st.sampled_from(
    [*Recipe.model_fields, "name", "damping", "seed", "compete", "dataset"]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(), inner, max_size=4),
    max_leaves=8,
)


@settings(FEW, max_examples=400)
@given(
    st.dictionaries(KEYS | st.integers(), ANYTHING, max_size=5),
    st.fixed_dictionaries(
        {},
        optional={
            "method": st.sampled_from(["wanda", "random"]) | ANYTHING,
            "pattern": ANYTHING,
            "sparsity": ANYTHING,
            "allocation": ANYTHING,
            "calibration": ANYTHING,
        },
    ),
)
def test_junk_is_either_a_recipe_or_a_request_error(junk: dict[str, Any], known: dict[str, Any]) -> None:
    try:
        assert isinstance(Recipe.parse(junk | known), Recipe)
    except RequestError as error:
        assert error.field
        assert str(error).startswith(error.field)


@settings(FEW, max_examples=300)
@given(st.text(max_size=40) | st.text("[]{}:-!&*?|>'\"%@`#,\n\t 019.eE+~ax", max_size=40))
def test_any_text_is_either_yaml_or_a_request_error(text: str) -> None:
    try:
        read_yaml(text)
    except RequestError as error:
        assert error.field == "recipe"
