"""Any data set on the Hub, given by its id `org/name`: one document per row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llmprune.paths import existing
from llmprune.text.chat import Conversation
from llmprune.text.sources.base import Documents, Half
from llmprune.text.sources.file import File
from llmprune.text.sources.table import Table
from llmprune.text.tables import stream


@dataclass(frozen=True)
class Hub(Documents):
    """The split `split` for calibration, the split `test` for evaluation."""

    text_column: str = "text"
    """The column that holds the text."""

    subset: str | None = None
    """Configuration of the data set."""

    split: str = "train"
    """Split for calibration."""

    @classmethod
    def matches(cls, dataset: str) -> bool:
        """Return whether this is an id, and not a path."""
        # A relative path such as data/text.txt looks like an id; files come first.
        is_path = existing(dataset) or File.matches(dataset) or Table.matches(dataset)
        return not is_path and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", dataset))

    def documents(self, half: Half) -> Iterator[str | Conversation]:
        """Yield the rows."""
        split = self.split if half == "calibration" else self.evaluation_split
        load_args = {"path": self.dataset, "name": self.subset, "split": split}
        return stream(load_args, self.text_column, self.dataset)
