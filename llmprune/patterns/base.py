"""What a pattern is: from importance to a mask.

A pattern names the kind of site that it prunes, and is the only place that knows how weights compete with one
another for survival; methods only say how much each one matters.

Letters used in shapes: O outputs, I inputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

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
    """The kind of site: a file of `llmprune/model/sites/`."""

    word: ClassVar[str] = ""
    """How a recipe spells it, where that is not the file's name."""

    @property
    def method(self) -> str | None:
        """The method that goes with it unless another is asked for."""
        return None

    @property
    def allocation(self) -> str | None:
        """The allocation that it needs instead of the method's own."""
        return None

    @property
    def removed(self) -> str:
        """What goes as a whole, in the words of a model card; empty where single weights go."""
        return ""

    @property
    def only_sparsity(self) -> float | None:
        """The one sparsity that the pattern has, if it has but one."""
        return None

    @property
    def group(self) -> int:
        """Consecutive inputs that compete among themselves; 0 if all inputs of a row may compete."""
        return 0

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """Choose what survives.

        Args:
            score: importance of every weight [O, I] or of every input [I]; larger survives.
            sparsity: share that goes, 0 to 1.
            units: how many units the inputs make up, where whole units go.

        Returns:
            bool [O, I], or [I] where whole inputs go.
        """
        raise NotImplementedError

    @classmethod
    def spelled(cls, word: str) -> dict[str, Any] | None:
        """The options that a word of a recipe stands for; None if it is not this pattern's."""
        return None

    def resolved(self) -> Any:
        """The pattern as a recipe writes it with every default filled in."""
        return {"name": str(self), **dataclasses.asdict(self)}

    def __str__(self) -> str:
        return plugins.name_of(self)


def build(value: object, defaults: Options) -> Pattern:
    """The pattern that a word, or a mapping of name and options, asks for.

    Raises:
        RequestError: there is none, or it has no such option.
    """
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        name, options = _meant(value["name"])
        value = {**value, **options, "name": name}
    elif isinstance(value, str):
        name, options = _meant(value)
        value = {"name": name, **options}
    return plugins.build("pattern", PACKAGE, value, Pattern, defaults)


def _meant(word: str) -> tuple[str, dict[str, Any]]:
    """The file and the options that a word stands for."""
    known = {name: plugins.find(PACKAGE, name, Pattern) for name in plugins.names(PACKAGE)}
    for name, pattern in known.items():
        if (options := pattern.spelled(word)) is not None:
            return name, options
    if word not in known and "." not in word:
        allowed = ", ".join(sorted(pattern.word or name for name, pattern in known.items()))
        raise RequestError("pattern", f"no pattern is called {word!r}; allowed: {allowed}")
    return word, {}
