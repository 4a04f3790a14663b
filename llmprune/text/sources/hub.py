"""Any data set on the Hub: its id, `org/name`. Every row is a document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llmprune.paths import existing
from llmprune.text.sources.base import Documents, Half
from llmprune.text.sources.file import File
from llmprune.text.sources.table import Table
from llmprune.text.tables import streamed


@dataclass(frozen=True)
class Hub(Documents):
    """The split that is asked for calibrates, and `test` evaluates."""

    text_column: str = "text"
    """The column that holds the text."""

    subset: str | None = None
    """Which configuration of the data set."""

    split: str = "train"
    """Which split calibrates."""

    @classmethod
    def answers_to(cls, dataset: str) -> bool:
        """Whether it is an id, and not a path."""
        is_path = existing(dataset) or File.answers_to(dataset) or Table.answers_to(dataset)
        return not is_path and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", dataset))

    def documents(self, half: Half) -> Iterator[str]:
        """Row by row."""
        split = self.split if half == "calibration" else self.evaluation_split
        where = {"path": self.dataset, "name": self.subset, "split": split}
        return streamed(where, self.text_column, self.dataset)
