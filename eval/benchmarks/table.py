"""A table in Markdown, drawn from the figures in eval/results."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import engines
from cells import Row

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "eval" / "results"
MODEL = "smollm2-135m"
NOT_MEASURED, LEFT_OUT = "not measured", "-"


@dataclass(frozen=True)
class Table:
    """Lines of fixed cells, each followed by what the columns say of the rows that it names."""

    folders: tuple[str, ...]
    """Of the model's results."""

    head: str
    columns: tuple[Callable[[Row], str], ...]
    lines: dict[str, str | list[str]]
    """The fixed cells, and the rows by name, separated by spaces where no name has any."""

    model: str = MODEL
    """Whose results."""

    def text(self) -> str:
        """In Markdown."""
        rule = "|" + "---|" * len(self.head.split("|"))
        known = rows(*self.folders, model=self.model)
        return "\n".join([f"| {self.head} |", rule, *(self._line(line, known) for line in self.lines)])

    def _line(self, fixed: str, known: dict[str, Row]) -> str:
        said, names = [fixed], self.lines[fixed]
        for name in names.split() if isinstance(names, str) else names:
            if name == LEFT_OUT:
                said += [""] * len(self.columns)
            elif name in known:
                said += [column(known[name]) for column in self.columns]
            else:
                said += [NOT_MEASURED, *[""] * (len(self.columns) - 1)]
        return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in said)}|"


def served(file: str, head: str, *columns: Callable[[Row], str]) -> Table:
    """What was measured in an engine, a line a row, in the order of its file."""
    return Table((file,), head, columns, {name: [name] for name in rows(file, model="serving")}, "serving")


@dataclass(frozen=True)
class Engines:
    """Which engines run which folders."""

    def text(self) -> str:
        """In Markdown."""
        return engines.table(lambda name: json.loads((RESULTS / "serving" / f"{name}.json").read_text()))


def rows(*folders: str, model: str = MODEL) -> dict[str, Row]:
    """A model's rows of some results, by name."""
    return {row["name"]: row for folder in folders for row in rows_of(RESULTS / model / folder)}


def rows_of(folder: Path) -> list[Row]:
    """The rows of one folder, or of one file of all: the dense model's first, then by what they score."""
    if (file := folder.with_name(f"{folder.name}.json")).is_file():
        return [{"name": name, **row} for name, row in json.loads(file.read_text())["rows"].items()]
    found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    return sorted(found, key=_rank)


def _rank(row: Row) -> tuple[bool, float, str]:
    mean = row.get("tasks", {}).get("mean", {}).get("score", 0.0)
    return row["name"] != "dense", -mean, row["name"]
