"""Options of a recipe's part, drawn from what the fields of its class say."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from itertools import chain
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st
from pydantic import TypeAdapter

WORDS = st.text(max_size=12)
FAR, WIDE = 10**6, 1e12  # where a field sets no limit


@cache
def options_of(part: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of a part's options; all of them where it does not do without."""
    hints = get_type_hints(part, include_extras=True)
    every = {field.name: values(hints[field.name]) for field in dataclasses.fields(part)}
    drawn = st.fixed_dictionaries({}, optional=every) if accepts(part, {}) else st.fixed_dictionaries(every)
    return drawn.filter(partial(accepts, part))


@cache
def adapter(part: type[Any]) -> TypeAdapter[Any]:
    """What reads a part from its options; made once, as that takes longest."""
    return TypeAdapter(part)


def accepts(part: type[Any], options: dict[str, Any]) -> bool:
    """Whether a part can have these options, some of which may exclude one another or name files."""
    try:
        adapter(part).validate_python(options)
    except ValueError:
        return False
    return True


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Whatever an option of this type can be."""
    kind, ends = (hint.__origin__, _limits(hint)) if get_origin(hint) is Annotated else (hint, {})
    if kind is int:
        least = ends.get("ge", ends.get("gt", -FAR - 1) + 1)
        return st.integers(int(least), int(ends.get("le", ends.get("lt", FAR + 1) - 1)))
    if kind is float:
        return _floats(ends)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is list:
        return st.lists(values(get_args(kind)[0]), max_size=4)
    if get_origin(kind) is dict:  # a part by its name and options, here one that any recipe can have
        return st.builds(lambda rise: {"name": "ramp", "rise": rise}, st.floats(-0.5, 0.5))
    if get_origin(kind) in (Union, UnionType):
        return st.one_of(map(values, get_args(kind)))
    return {bool: st.booleans(), str: WORDS, NoneType: st.none()}[kind]


def _limits(hint: Any) -> dict[str, float]:
    """The limits that an annotation sets, by their names there."""
    inner = chain.from_iterable(getattr(said, "metadata", [said]) for said in hint.__metadata__)
    ends = [(end, getattr(said, end, None)) for said in inner for end in ("ge", "gt", "le", "lt")]
    return {end: value for end, value in ends if value is not None}


def _floats(ends: dict[str, float]) -> st.SearchStrategy[float]:
    """Finite numbers; where nothing limits them, shares as often as others."""
    if not ends:
        return st.floats(0, 1, exclude_max=True) | st.floats(-WIDE, WIDE, allow_subnormal=False)
    return st.floats(
        ends.get("ge", ends.get("gt", -WIDE)),
        ends.get("le", ends.get("lt", WIDE)),
        exclude_min="gt" in ends,
        exclude_max="lt" in ends,
        allow_subnormal=False,
    )
