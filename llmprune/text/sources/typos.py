"""A text with typing errors, `typos:TEXT`: how a model takes what people type."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmprune.errors import RequestError
from llmprune.text import sources
from llmprune.text.sources.base import OPTION, Documents, Half

PREFIX, SHARE = "typos:", 0.05
LETTERS = dict.fromkeys(string.ascii_lowercase, string.ascii_lowercase)
LETTERS |= dict.fromkeys(string.ascii_uppercase, string.ascii_uppercase)


@dataclass(frozen=True)
class Typos(Documents):
    """One of twenty letters is another one, always the same ones; all else stays."""

    evaluation_split: ClassVar = "5 % of the letters replaced"
    text_column: str | None = None
    """The column of a table that holds the text; by default, what the table names."""

    @classmethod
    def matches(cls, dataset: str) -> bool:
        """Whether a text is named behind the prefix."""
        return dataset.startswith(PREFIX)

    def documents(self, half: Half) -> Iterator[str]:
        """Return the documents of the text, with errors."""
        generator = random.Random(0)
        text = sources.for_evaluation(self.dataset.removeprefix(PREFIX), self.text_column)
        for document in text.documents(half):
            if not isinstance(document, str):
                said = f"{self.dataset} holds conversations, which get no typing errors; name a text"
                raise RequestError(OPTION[half], said)
            yield "".join(map(lambda letter: _typed(letter, generator), document))


def _typed(letter: str, generator: random.Random) -> str:
    """A character as it is typed: itself, or now and then another letter."""
    others = LETTERS.get(letter)
    if others is None or generator.random() >= SHARE:
        return letter
    return generator.choice(others.replace(letter, ""))
