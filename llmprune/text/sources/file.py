"""A plain text file, given by its path, which ends in .txt or .md: one document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llmprune.errors import RequestError
from llmprune.paths import existing
from llmprune.text.sources.base import OPTION, Documents, Half

SUFFIXES = (".txt", ".md")


@dataclass(frozen=True)
class File(Documents):
    """The whole file, for calibration and for evaluation."""

    between: ClassVar = ""
    evaluation_split: ClassVar = "whole file"

    @classmethod
    def matches(cls, dataset: str) -> bool:
        """Return whether this looks like the path of such a file, existing or not."""
        return has_suffix(dataset, SUFFIXES)

    def documents(self, half: Half) -> Iterator[str]:
        """Yield the file in pieces of 1 Mi characters; `between` is empty, so they join seamlessly."""
        # Pieces, so that a run that reads the start of a large file does not hold all of it.
        path = existing_file(self.dataset, half)
        try:
            with path.open(encoding="utf-8") as file:
                while part := file.read(1 << 20):
                    yield part
        except UnicodeDecodeError as error:
            raise RequestError(
                OPTION[half], f"{path} is not UTF-8 text ({error.reason}); convert it"
            ) from error
        except OSError as error:
            raise RequestError(OPTION[half], f"{path} cannot be read: {error.strerror}") from error


def has_suffix(dataset: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether a path has one of the suffixes and is not a folder."""
    found = existing(dataset)
    return Path(dataset).suffix in suffixes and not (found and found.is_dir())


def existing_file(dataset: str, half: Half) -> Path:
    """Return the path of a file.

    Raises:
        RequestError: it does not exist.
    """
    path = existing(dataset)
    if path is None:
        raise RequestError(OPTION[half], f"there is no file {dataset}; give the path of an existing file")
    return path
