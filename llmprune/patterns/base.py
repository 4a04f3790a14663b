"""Base class of patterns, which turn importance into a mask.

A pattern names the kind of site that it prunes, and decides which weights compete with one another; methods
only score the weights.

Letters used in shapes: O outputs, I inputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict
from torch import Tensor

from llmprune import plugins
from llmprune.errors import RequestError
from llmprune.plugins import OPTIONS, Options

PACKAGE = "llmprune.patterns"


@dataclass(frozen=True)
class Pattern:
    """Override `keep`. The fields of a subclass are its options in a recipe."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS
    prunes: ClassVar[str] = "linear"
    """Kind of site: the name of a file of `llmprune/model/sites/`."""

    method: ClassVar[str | None] = None
    """The method that goes with it unless another is asked for."""

    word: ClassVar[str] = ""
    """How a recipe spells the pattern, if not by the file's name."""

    @property
    def allocation(self) -> str | None:
        """The allocation that it needs instead of the method's own."""
        return None

    @property
    def settles_sparsity(self) -> bool:
        """Whether it says what goes, so that the sparsity follows once the model is known."""
        return False

    @property
    def removed(self) -> str:
        """The units that are removed, in the words of a model card; empty for single weights."""
        return ""

    @property
    def only_sparsity(self) -> float | None:
        """The sparsity that the pattern fixes; None if any is possible."""
        return None

    @property
    def group(self) -> int:
        """Number of consecutive inputs that compete with one another; 0 if all inputs of a row may."""
        return 0

    @property
    def by_rows(self) -> bool:
        """Whether no weight competes with those of another row."""
        return False

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """Choose what to keep.

        Args:
            score: importance of every weight [O, I] or of every input [I]; the largest are kept.
            sparsity: share to remove, 0 to 1.
            units: number of units that the inputs form; 0 for single weights.

        Returns:
            Mask, True to keep: bool [O, I], or [I] if whole inputs are removed.
        """
        raise NotImplementedError

    @classmethod
    def spelled(cls, word: str) -> dict[str, object] | None:
        """Return the options that a recipe's word stands for; None if the word is not this pattern's."""
        return None

    def resolved(self) -> str | dict[str, object]:
        """Return the pattern as in a recipe, with every default filled in."""
        return {"name": str(self), **dataclasses.asdict(self)}

    def __str__(self) -> str:
        return plugins.name_of(self)


def build(value: object, defaults: Options) -> Pattern:
    """Build the pattern that a word, or a mapping of name and options, stands for.

    Raises:
        RequestError: no such pattern exists, or it has no such option.
    """
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        name, options = _parsed(value["name"])
        # `{"name": "2:4"}` means the same as the word `2:4`, so the word's options win.
        value = {**value, **options, "name": name}
    elif isinstance(value, str):
        name, options = _parsed(value)
        value = {"name": name, **options}
    return plugins.build("pattern", PACKAGE, value, Pattern, defaults)


def class_of(word: str) -> type[Pattern]:
    """The class of the pattern that a word stands for.

    Raises:
        RequestError: no such pattern exists.
    """
    name, _ = _parsed(word)
    try:
        return plugins.find(PACKAGE, name, Pattern)
    except ValueError as error:
        raise RequestError("pattern", str(error)) from error


def with_usual(value: object, usual: object, compete: str) -> Pattern:
    """The pattern that was asked for, with the method's options where it is the method's own."""
    if isinstance(value, Pattern):
        return value
    own, options = (dict(v) if isinstance(v, dict) else {"name": v} for v in (usual, value))
    if options.get("name") in (None, own["name"]):
        options = {**own, **{key: v for key, v in options.items() if v is not None}}
    return build(options, {"compete": compete})


def only_sparsity(pattern: Pattern, asked: object) -> float:
    """The only sparsity that a pattern has."""
    fixed = pattern.only_sparsity
    assert fixed is not None
    if not abs(_number(asked) - fixed) <= 1e-9:
        raise RequestError(
            "sparsity",
            f"{asked} was asked, and the pattern {pattern} removes exactly "
            f"{fixed:g}; leave the sparsity out, or change the pattern",
        )
    return fixed


def _number(value: object) -> float:
    try:
        if isinstance(value, str | int | float):
            return float(value)
        why = None
    except (ValueError, OverflowError) as error:
        why = error
    raise RequestError("sparsity", f"{value!r} is not a number") from why


def _parsed(word: str) -> tuple[str, dict[str, object]]:
    """Return the file's name and the options that a word stands for."""
    known = {name: plugins.find(PACKAGE, name, Pattern) for name in plugins.names(PACKAGE)}
    for name, pattern in known.items():
        if (options := pattern.spelled(word)) is not None:
            return name, options
    if word not in known and "." not in word:
        allowed = ", ".join(sorted(pattern.word or name for name, pattern in known.items()))
        raise RequestError("pattern", f"no pattern is called {word!r}; allowed: {allowed}")
    return word, {}
