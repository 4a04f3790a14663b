"""A plain text file: its path, ending in .txt or .md. It is one document."""

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
    """The whole file calibrates and evaluates."""

    between: ClassVar = ""
    evaluation_split: ClassVar = "whole file"

    @classmethod
    def answers_to(cls, dataset: str) -> bool:
        """Whether it is the path of such a file, which need not be there."""
        return has_suffix(dataset, SUFFIXES)

    def documents(self, half: Half) -> Iterator[str]:
        """A MB at a time, as if each were a document."""
        path = there(self.dataset, half)
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
    """Whether it is a path that ends like this, and no folder's."""
    found = existing(dataset)
    return Path(dataset).suffix in suffixes and not (found and found.is_dir())


def there(dataset: str, half: Half) -> Path:
    """The path of a file.

    Raises:
        RequestError: there is none.
    """
    path = existing(dataset)
    if path is None:
        raise RequestError(OPTION[half], f"there is no file {dataset}; give one that is there")
    return path
