"""The calibration of a recipe is one flat mapping, which holds the options of its source and no others."""

from __future__ import annotations

from typing import Any

import pytest

from llmprune.errors import RequestError
from llmprune.recipe import Recipe
from llmprune.text.calibration import Calibration, with_defaults
from llmprune.text.sources.hub import Hub
from llmprune.text.sources.synthetic import Synthetic

ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {"dataset": "builtin"}),
    "a source without options": ({"dataset": "c4", "seed": 4}, {"dataset": "c4", "seed": 4}),
    "its own option": ({"dataset": "self"}, {"dataset": "self", "temperature": 1.0}),
    "a path": ({"dataset": "my.txt"}, {"dataset": "my.txt"}),
    "a table": ({"dataset": "my.jsonl"}, {"dataset": "my.jsonl", "text_column": "text"}),
    "an id": (
        {"dataset": "org/name", "subset": "en"},
        {"dataset": "org/name", "text_column": "text", "subset": "en", "split": "train"},
    ),
}
USUAL = {"samples": 128, "length": None, "seed": 0, "bos": "auto"}


@pytest.mark.parametrize(("asked", "found"), ASKED.values(), ids=ASKED)
def test_the_flat_mapping_holds_only_what_applies(asked: dict[str, Any], found: dict[str, Any]) -> None:
    calibration = Calibration.model_validate(asked)
    assert calibration.model_dump() == USUAL | found
    assert Calibration.model_validate(calibration.model_dump()) == calibration


def test_the_source_is_built_with_its_options() -> None:
    assert Calibration(dataset="synthetic", redraws=3).source == Synthetic("synthetic", 3)
    assert Calibration(dataset="a/b", text_column="body").source == Hub("a/b", "body")


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "column of a plain file": ({"dataset": "my.txt", "text_column": "body"}, "text_column", "my.txt"),
    "column of a known data set": ({"dataset": "c4", "text_column": "text"}, "text_column", "c4"),
    "redraws of a text": ({"redraws": 2}, "redraws", "builtin; leave it out"),
    "split of a file": ({"dataset": "my.jsonl", "split": "train"}, "split", "text_column"),
    "temperature of ranks": ({"dataset": "synthetic", "temperature": 1}, "temperature", "redraws"),
    "redraws of generated text": ({"dataset": "self", "redraws": 0}, "redraws", "temperature"),
    "mistyped": ({"sample": 4}, "sample", "samples, length, seed, bos"),
    "BOS in other words": ({"bos": "yes"}, "bos", "'yes' was asked; give auto, true or false"),
    "a temperature of 0": ({"dataset": "self", "temperature": 0}, "temperature", "found 0"),
    "a redraw too few": ({"dataset": "synthetic", "redraws": -1}, "redraws", "found -1"),
    "a source in words": ({"source": "builtin"}, "source", "no such option"),
}


@pytest.mark.parametrize(("asked", "option", "said"), WRONG.values(), ids=WRONG)
def test_an_option_that_does_not_apply_is_an_error(asked: dict[str, Any], option: str, said: str) -> None:
    with pytest.raises(RequestError, match=f"^calibration.{option}: ") as raised:
        Recipe.parse({"method": "wanda", "calibration": asked})
    assert raised.value.field == f"calibration.{option}"
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_default_that_does_not_apply_is_dropped_and_a_request_is_kept() -> None:
    usual = {"dataset": "self", "samples": 256, "redraws": 2, "temperature": 0.5}
    assert with_defaults({}, usual) == {"dataset": "self", "samples": 256, "temperature": 0.5}
    assert with_defaults({"dataset": "synthetic"}, usual) == {
        "dataset": "synthetic",
        "samples": 256,
        "redraws": 2,
    }
    assert with_defaults({"dataset": "c4", "redraws": 1}, usual)["redraws"] == 1


@pytest.mark.parametrize(("dataset", "forwards", "whole"), [(None, 0, True), ("synthetic", 2, False)])
def test_a_method_s_defaults_go_with_the_source(dataset: str | None, forwards: int, whole: bool) -> None:
    asked = {"dataset": dataset} if dataset else {}
    text = Recipe.parse({"method": "prunenet", "calibration": asked}).calibration
    assert (text.samples, text.length) == (256, 64)
    assert (text.source.forward_passes, text.source.needs_whole_model) == (forwards, whole)
