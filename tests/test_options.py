"""What is drawn for an option reaches all that its field allows, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from hypothesis import Phase, find, settings
from hypothesis.errors import NoSuchExample
from pydantic import Field

from tests.options import values

ONCE = settings(phases=[Phase.generate], database=None, derandomize=True)
Whole = Annotated[int, Field(ge=3, lt=5)]


@pytest.mark.parametrize(
    ("hint", "found"),
    [
        (Whole, lambda n: n == 3),
        (Whole, lambda n: n == 4),
        (Annotated[int, Field(gt=3)], lambda n: n == 4),
        (int, lambda n: n < 0),
        (Annotated[float, Field(gt=0, le=1)], lambda x: x > 0.9),
        (Annotated[float, Field(ge=0)], lambda x: x == 0),
        (Annotated[float, Field(ge=0)], lambda x: x > 1000),
        (float, lambda x: 0 < x < 1),
        (float, lambda x: x < -1),
        (str | None, lambda word: word is None),
        (str | None, lambda word: word),
        (list[float] | str, lambda value: isinstance(value, list) and len(value) > 1),
        (Literal["a", "b"], lambda word: word == "b"),
        (bool, lambda said: said),
        (list[str | dict[str, Any]], lambda found: any(isinstance(part, dict) for part in found)),
    ],
)
def test_whatever_is_allowed_is_drawn(hint: Any, found: Callable[[Any], bool]) -> None:
    find(values(hint), found, settings=ONCE)


@pytest.mark.parametrize(
    ("hint", "wrong"),
    [
        (Whole, lambda n: not 3 <= n < 5),
        (Annotated[float, Field(gt=0, le=1)], lambda x: not 0 < x <= 1),
        (Annotated[float, Field(ge=0, lt=0.5)], lambda x: not 0 <= x < 0.5),
        (float, lambda x: not math.isfinite(x)),
        (list[Whole], lambda numbers: not all(3 <= n < 5 for n in numbers)),
    ],
)
def test_nothing_else_is_drawn(hint: Any, wrong: Callable[[Any], bool]) -> None:
    with pytest.raises(NoSuchExample):
        find(values(hint), wrong, settings=ONCE)
