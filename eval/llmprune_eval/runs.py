"""The finished runs that a page tells of; read without torch, so that it is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmprune import report
from llmprune.errors import RequestError
from llmprune.measured import WINDOWS, Bench, Judged, Text
from llmprune.report import Report

PROTOCOL = (*WINDOWS, "tokenizer")


@dataclass(frozen=True)
class Run:
    """A finished folder: its report, and the name and number that it goes by on the page."""

    folder: Path
    name: str
    number: int
    record: Report

    @property
    def error(self) -> float | None:
        """Mean output error over the sites, if any was measured."""
        errors = [site.error for site in self.record.sites if site.error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def size(self) -> float:
        """Bytes after over bytes before."""
        return self.record.totals["bytes_after"] / self.record.totals["bytes_before"]

    def judged(self, role: Literal["baseline", "model"] = "model") -> Judged:
        """What was measured of the pruned model, or of the dense one beside it; it may be nothing."""
        return (self.record.evaluation or {}).get(role, {})

    def texts(self, role: Literal["baseline", "model"] = "model") -> list[Text]:
        """The perplexities of the pruned model, or of the dense one beside it."""
        return self.judged(role).get("perplexity", [])

    @property
    def bench(self) -> Bench:
        """What a bench measured, which may be nothing."""
        return (self.record.evaluation or {}).get("bench", {})


def key_of(text: Text) -> tuple[str, ...]:
    """Texts of the same key were measured alike."""
    return tuple(str(text.get(name)) for name in PROTOCOL)


def read_all(folders: list[Path]) -> list[Run]:
    """The runs of finished folders, each once, in the order given.

    Raises:
        RequestError: a folder holds no report that this version can read.
    """
    once = list({folder.resolve(): folder for folder in folders}.items())
    names = [place.name for place, _ in once]
    return [
        Run(folder, place.name if names.count(place.name) == 1 else str(folder), number, read(folder))
        for number, (place, folder) in enumerate(once, 1)
    ]


def read(folder: Path) -> Report:
    """The report of a finished folder.

    Raises:
        RequestError: there is none that this version can read.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise RequestError("model", f"{folder} is {what}; give a folder that llmprune prune has written")
    unfinished = (folder / ".unfinished").exists()
    found = None if unfinished else report.read(folder)
    if found is None:
        what = "is unfinished" if unfinished else f"holds no {report.FILE}"
        way = "finish or repeat its llmprune prune, or give another folder"
        raise RequestError("model", f"{folder} {what}; {way}")
    return found
