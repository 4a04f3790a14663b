"""Any good recipe survives being resolved and written, and any junk is refused in our own words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, find, given, settings
from hypothesis import strategies as st

from llmprune import plugins
from llmprune.allocation.base import Allocator
from llmprune.errors import RequestError
from llmprune.methods.base import Method
from llmprune.patterns.units import Units
from llmprune.patterns.unstructured import Unstructured
from llmprune.recipe import Recipe
from llmprune.recipe.text import read_yaml, write_yaml
from llmprune.repair.base import Repair
from llmprune.text.calibration import Calibration
from llmprune.text.sources.base import TextSource
from tests.options import WORDS, accepts, adapter, options_of

LARGE = 10**400
FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHORT = st.sampled_from(["text", "1e3", "08", "2:4", "yes", "~", "null", "2020-01-01", " a", "", ".inf", "é"])
POSITIVE = st.floats(min_value=1e-12, max_value=1e12, allow_subnormal=False)
PARTS: dict[str, tuple[str, type[Any]]] = {
    "method": ("llmprune.methods", Method),
    "allocation": ("llmprune.allocation", Allocator),
    "repair": ("llmprune.repair", Repair),
    "text": ("llmprune.text.sources", TextSource),
}


def classes(field: str) -> dict[str, type[Any]]:
    """What a field of a recipe can name."""
    package, base = PARTS[field]
    return {name: plugins.find(package, name, base) for name in plugins.names(package)}


METHODS, ALLOCATIONS, REPAIRS, TEXTS = map(classes, PARTS)
KINDS = sorted({kind for method in METHODS.values() for kind in method.serves})
ONE_NAME = WORDS.filter(lambda word: "," not in word)
DATASETS = {  # of the text sources that are not asked for by their file's name
    "file": ONE_NAME.map("{}x.txt".format) | st.sampled_from(["1e3.md", "~/a b.txt"]),
    "table": ONE_NAME.map("{}x.jsonl".format) | st.just("/nowhere/2:4.parquet"),
    "several": st.sampled_from(["builtin,c4", "a.txt, b.jsonl"]),
    "answers": st.sampled_from(["a.jsonl:answers", "org/name:answers"]),
    "mix": st.sampled_from(["builtin:2,c4:3", "a.txt:1, b.jsonl:20"]),
    "typos": st.sampled_from(["typos:builtin", "typos:a.txt"]),
    "hub": st.sampled_from(["org/name", "a-b/c_d.e", "1/08"]),
}
AMOUNTS = {
    "samples": st.integers(2, 10**6),
    "length": st.none() | st.integers(2, 10**6),
    "seed": st.integers(0, 2**31 - 1),
    "bos": st.sampled_from(["auto", True, False]),
}


@st.composite
def calibrations(draw: st.DrawFn) -> dict[str, Any]:
    """The data of a calibration: a source with some of its options, and how much of it."""
    name = draw(st.sampled_from(sorted(TEXTS)))
    options = draw(options_of(TEXTS[name])) | {"dataset": draw(DATASETS.get(name, st.just(name)))}
    return options | draw(st.fixed_dictionaries({}, optional=AMOUNTS))


def named(parts: dict[str, type[Any]]) -> st.SearchStrategy[Any]:
    """A part by its bare name, or with some of its options."""
    bare = [name for name, part in sorted(parts.items()) if accepts(part, {})]
    with_options = [
        options_of(part).map(lambda options, name=name: {"name": name, **options})
        for name, part in sorted(parts.items())
    ]
    return st.sampled_from(bare) | st.one_of(with_options)


def allocations(what: str, method: type[Any]) -> dict[str, type[Any]]:
    """Those that can share out `weights` or `units` with a method."""
    found = {name: part for name, part in ALLOCATIONS.items() if what in part.serves}
    return {n: part for n, part in found.items() if method.scores_alone() or not part.compares_scores}


def name_in(data: dict[str, Any], field: str) -> str | None:
    """What a field of a recipe's data names."""
    asked = data.get(field)
    return asked["name"] if isinstance(asked, dict) else asked


def repairs(what: str) -> dict[str, type[Any]]:
    """Those that compensate for removed `units` or `blocks`."""
    return {name: part for name, part in REPAIRS.items() if what in part.serves}


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """The data of a recipe that nothing is wrong with."""
    kind = draw(st.sampled_from(KINDS))
    data = {"method": draw(named({name: part for name, part in METHODS.items() if kind in part.serves}))}
    method = METHODS[str(name_in(data, "method"))]
    if kind == "rows":
        data["pattern"] = {"name": "vocabulary", "keep": draw(st.integers(1, 10**6))}
    elif kind == "units":
        data["pattern"] = {"name": "units", **draw(options_of(Units))}
        data["sparsity"] = draw(st.floats(0, 1, exclude_max=True))
        data["allocation"] = draw(named(allocations("units", method)))
        data["repair"] = draw(named(repairs("units")))
        uneven = ALLOCATIONS[str(name_in(data, "allocation"))].uneven
        layouts = st.sampled_from(["per_layer", "padded"] if uneven else ["per_layer", "padded", "uniform"])
        data |= draw(st.fixed_dictionaries({}, optional={"layout": layouts}))
    elif kind == "experts":
        data["pattern"] = "experts"
        data["sparsity"] = draw(st.floats(0, 1, exclude_max=True))
        data["allocation"] = draw(named(allocations("experts", method)))
        data["repair"] = draw(named(repairs("experts")))
    elif kind == "blocks":
        listed = draw(st.none() | st.lists(st.integers(1, 99), min_size=1, unique=True))
        data["pattern"] = {"name": "blocks", "remove": listed, "keep_ends": draw(st.booleans())}
        data["sparsity"] = draw(st.floats(0, 1, exclude_max=True))
        criteria = {n: part for n, part in allocations("blocks", method).items() if not part.follows_list}
        data["allocation"] = draw(named(criteria)) if listed is None else "listed"
        data["repair"] = draw(named(repairs("blocks")))
    elif draw(st.booleans()):
        m = draw(st.integers(2, 64))
        data["pattern"] = f"{draw(st.integers(1, m - 1))}:{m}"
        even = {n: part for n, part in allocations("weights", method).items() if not part.uneven}
        data["allocation"] = draw(named(even))
        data["repair"] = draw(named(repairs("weights")))
    else:
        data["allocation"] = draw(named(allocations("weights", method)))
        options = options_of(Unstructured).map(lambda options: {"name": "unstructured", **options})
        data["pattern"] = draw(st.just("unstructured") | options)
        data["repair"] = draw(named(repairs("weights")))
        data["sparsity"] = draw(st.floats(0, 1, exclude_max=True))
    others = {
        "propagation": st.sampled_from(["dense", "block", "layer"]),
        "recovery": st.sampled_from(
            [None, "lora", {"name": "lora", "rank": 4}, "reconstruct", *["refine"] * (kind == "weights")]
        ),
        "model": st.none() | WORDS | SHORT,
        "version": st.integers(1, 9),
        "calibration": st.fixed_dictionaries({}, optional=AMOUNTS) | calibrations(),
    }
    if kind == "weights" and draw(st.booleans()):
        data["target"] = "dense"
        others["propagation"] = st.just("layer")  # no other follows the dense model
    if kind == "experts":
        others["propagation"] = st.sampled_from(["dense", "block"])
        others["recovery"] = st.sampled_from([None, "lora"])
    if "rows" in method.serves:
        others["recovery"] = st.sampled_from([None, "lora", "reconstruct"])  # those that translate tokens
    return data | draw(st.fixed_dictionaries({}, optional=others))


EVERY = [(field, name) for field in PARTS for name in classes(field)]
OPTIONS = [(*part, option.name) for part in EVERY for option in dataclasses.fields(classes(part[0])[part[1]])]
ONCE = settings(phases=[Phase.generate], database=None, derandomize=True)


@pytest.mark.parametrize(("field", "name", "option"), OPTIONS)
def test_every_option_is_drawn_with_other_values_than_its_own(field: str, name: str, option: str) -> None:
    part = classes(field)[name]
    usual = {field.name: field.default for field in dataclasses.fields(part)}[option]
    drawn = find(options_of(part), lambda options: options.get(option, usual) != usual, settings=ONCE)
    assert getattr(adapter(part).validate_python(drawn), option) == drawn[option]


def test_every_part_is_drawn_in_a_recipe() -> None:
    missing = {part for part in EVERY if part[0] != "text"}

    def none_is_missing(data: dict[str, Any]) -> bool:
        missing.difference_update((field, name_in(data, field)) for field in PARTS)
        return not missing

    find(recipes(), none_is_missing, settings=settings(ONCE, max_examples=8000))


def test_every_field_of_the_calibration_is_drawn() -> None:
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
