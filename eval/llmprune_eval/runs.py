"""The finished runs and measured files that a page tells of; read without torch, so that it is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from llmprune import report
from llmprune.errors import RequestError
from llmprune.measured import WINDOWS, Bench, Evaluation, Judged, Text
from llmprune.paths import UNFINISHED
from llmprune.report import Report

PROTOCOL = (*WINDOWS, "tokenizer")
FIGURES = TypeAdapter(Evaluation)


@dataclass(frozen=True)
class Measured:
    """A model with what was measured of it, and the name and number that it goes by on the page."""

    place: Path
    name: str
    number: int
    evaluation: Evaluation

    def judged(self, role: Literal["baseline", "model"] = "model") -> Judged:
        """What was measured of the pruned model, or of the dense one beside it; it may be nothing."""
        return self.evaluation.get(role, {})

    def texts(self, role: Literal["baseline", "model"] = "model") -> list[Text]:
        """The perplexities of the pruned model, or of the dense one beside it."""
        return self.judged(role).get("perplexity", [])

    @property
    def bytes(self) -> int:
        """Of the file."""
        return self.place.stat().st_size

    @property
    def bench(self) -> Bench:
        """What a bench measured, which may be nothing."""
        return self.evaluation.get("bench", {})


@dataclass(frozen=True)
class Run(Measured):
    """A finished folder, with its report."""

    record: Report

    @property
    def error(self) -> float | None:
        """Mean output error over the sites, if any was measured."""
        errors = [site.error for site in self.record.sites if site.error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def bytes(self) -> int:
        """Of the weight files."""
        return self.record.totals["bytes_after"]

    @property
    def size(self) -> float:
        """Bytes after over bytes before."""
        return self.record.totals["bytes_after"] / self.record.totals["bytes_before"]


def key_of(text: Text) -> tuple[str, ...]:
    """Texts of the same key were measured alike."""
    return tuple(str(text.get(name)) for name in PROTOCOL)


def read_all(folders: list[Path]) -> list[Run]:
    """The runs of finished folders, each once, in the order given.

    Raises:
        RequestError: a folder holds no report that this version can read.
    """
    records = [(place, name, read(place)) for place, name in _named(folders)]
    return [
        Run(place, name, number, record.evaluation or {}, record)
        for number, (place, name, record) in enumerate(records, 1)
    ]


def read_files(files: list[Path], first: int = 1) -> list[Measured]:
    """.gguf files that were measured, each once, numbered from `first`.

    Raises:
        RequestError: one is not there, or has no figures beside it.
    """
    return [
        Measured(place, name, number, figures_of(place))
        for number, (place, name) in enumerate(_named(files), first)
    ]


def _named(places: list[Path]) -> list[tuple[Path, str]]:
    """Each place once, with the shortest name that no other has."""
    once = {place.resolve(): place for place in places}
    names = [whole.name for whole in once]
    return [
        (place, whole.name if names.count(whole.name) == 1 else str(place)) for whole, place in once.items()
    ]


def beside(file: Path) -> Path:
    """Where the figures of a .gguf file are kept."""
    return file.with_name(f"{file.name}.json")


def figures_of(file: Path) -> Evaluation:
    """What was measured of a .gguf file.

    Raises:
        RequestError: there is no such file, or nothing readable beside it.
    """
    if not file.is_file():
        raise RequestError("model", f"{file} is not there; give a .gguf file that was measured")
    try:
        return FIGURES.validate_json(beside(file).read_bytes())
    except FileNotFoundError:
        way = f"run llmprune eval {file} --save"
        raise RequestError("model", f"{file} has no figures beside it; {way}") from None
    except (OSError, ValueError) as error:
        raise RequestError("model", f"{beside(file)} holds no figures of llmprune; delete it") from error


def read(folder: Path) -> Report:
    """The report of a finished folder.

    Raises:
        RequestError: there is none that this version can read.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise RequestError("model", f"{folder} is {what}; give a folder that llmprune prune has written")
    unfinished = (folder / UNFINISHED).exists()
    found = None if unfinished else report.read(folder)
    if found is None:
        what = "is unfinished" if unfinished else f"holds no {report.FILE}"
        way = "finish or repeat its llmprune prune, or give another folder"
        raise RequestError("model", f"{folder} {what}; {way}")
    return found
