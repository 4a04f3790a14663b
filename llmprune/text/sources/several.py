"""Several texts, one after the other: their names, paths or ids, with commas between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmprune.errors import RequestError
from llmprune.paths import existing
from llmprune.text import sources
from llmprune.text.chat import Conversation
from llmprune.text.sources.base import OPTION, Documents, Half
from llmprune.text.sources.mix import Mix


@dataclass(frozen=True)
class Several(Documents):
    """Each with the options that it has unless asked otherwise."""

    text_column: str | None = None
    """The column that holds the text, of those that are tables; by default, what each names."""

    @classmethod
    def matches(cls, dataset: str) -> bool:
        """Whether it is a list, and not the path of one text."""
        return "," in dataset and not existing(dataset) and not Mix.matches(dataset)

    def documents(self, half: Half) -> Iterator[str | Conversation]:
        """All of the first, then all of the next."""
        for name in self.dataset.split(","):
            name = name.strip()
            named = self.text_column and "text_column" in sources.source_class(name).option_names()
            options = {"text_column": self.text_column} if named else {}
            text = sources.for_calibration(name, options)
            if not isinstance(text, Documents):
                raise RequestError(OPTION[half], f"{name} is no text that is read; name others in the list")
            yield from text.documents(half)
