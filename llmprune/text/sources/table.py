"""A file with columns: its path, ending in .jsonl, .json or .parquet. Every row is a document."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmprune.errors import RequestError, first_line
from llmprune.text.sources.base import OPTION, Documents, Half
from llmprune.text.sources.file import has_suffix, there
from llmprune.text.tables import rows

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Table(Documents):
    """The whole file calibrates and evaluates."""

    evaluation_split: ClassVar = "whole file"

    text_column: str = "text"
    """The column that holds the text."""

    @classmethod
    def answers_to(cls, dataset: str) -> bool:
        """Whether it is the path of such a file, which need not be there."""
        return has_suffix(dataset, tuple(FORMATS))

    def documents(self, half: Half) -> Iterator[str]:
        """Row by row; a file that is broken is the user's to mend."""
        path = there(self.dataset, half)
        if not path.stat().st_size:
            return
        where = {"path": FORMATS[path.suffix], "data_files": glob.escape(str(path)), "split": "train"}
        try:
            yield from rows(where, self.text_column, self.dataset)
        except RequestError:
            raise
        except Exception as error:
            raise RequestError(
                OPTION[half], f"{self.dataset} cannot be read as a table ({first_line(error)}); is it whole?"
            ) from error
