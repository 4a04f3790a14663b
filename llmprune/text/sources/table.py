"""A table, given by its path, which ends in .jsonl, .json or .parquet: one document per row."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmprune.errors import RequestError, first_line
from llmprune.text.chat import Conversation
from llmprune.text.sources.base import OPTION, Documents, Half
from llmprune.text.sources.file import existing_file, has_suffix
from llmprune.text.tables import rows

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Table(Documents):
    """The whole file, for calibration and for evaluation."""

    evaluation_split: ClassVar = "whole file"

    text_column: str = "text"
    """The column that holds the text."""

    @classmethod
    def matches(cls, dataset: str) -> bool:
        """Return whether this looks like the path of such a file, existing or not."""
        return has_suffix(dataset, tuple(FORMATS))

    def documents(self, half: Half) -> Iterator[str | Conversation]:
        """Yield the rows; raise a RequestError for a broken file."""
        path = existing_file(self.dataset, half)
        if not path.stat().st_size:
            return  # `datasets` fails on an empty file; the caller reports that it holds no text
        # `data_files` is a glob pattern, and a path may hold brackets or stars.
        load_args = {"path": FORMATS[path.suffix], "data_files": glob.escape(str(path)), "split": "train"}
        try:
            yield from rows(load_args, self.text_column, self.dataset)
        except RequestError:
            raise
        except Exception as error:  # `datasets` raises a different class for each format
            raise RequestError(
                OPTION[half],
                f"{self.dataset} cannot be read as a table ({first_line(error)}); check that it is complete",
            ) from error
