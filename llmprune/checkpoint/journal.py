"""The journal of a run: a line for the run, and one for every block whose shard is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from llmprune.errors import RequestError
from llmprune.report import Refit, SiteRecord


class RunHeader(BaseModel):
    """The journal's first line: all that decides the bytes of the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: dict[str, Any]
    """What was asked, of which model, on which text and machine; a resumed run must have the same."""

    batch: int = 1
    """Windows that go through a block together."""

    together: bool = False
    """Whether all batches wait at each layer; with `batch`, it decides how sums are rounded."""

    budget: dict[str, float] = {}
    """The share that goes at every site."""


class BlockRecord(BaseModel):
    """The journal's line of one block whose shard is whole. Seconds, and the keys of the shard's tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sites: list[SiteRecord] = []
    refits: list[Refit] = []
    """Of a recovery."""

    forward_s: float = 0.0
    solve_s: float = 0.0
    write_s: float = 0.0
    keys: list[str] = []


def whole_lines(journal: Path) -> list[dict[str, Any]]:
    """The journal's lines up to the first that was not written to its end."""
    lines: list[dict[str, Any]] = []
    if not journal.is_file():
        return lines
    for text in journal.read_text().splitlines(keepends=True):
        if not text.endswith("\n"):
            break
        lines.append(json.loads(text))
    return lines


def rewrite(journal: Path, lines: list[dict[str, Any]]) -> None:
    """Drop a last line that was cut off, so that the next one starts on its own."""
    part = journal.with_name("journal.part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    part.replace(journal)


def require_same(begun: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Refuse to resume a run of another fingerprint.

    Raises:
        RequestError: it says what differs.
    """
    differing = [key for key in now if begun.get(key) != now[key]]
    if differing:
        key = differing[0]
        was, is_ = _where(begun.get(key), now[key])
        raise RequestError(
            "resume",
            f"{out} was begun with another {key} ({_short(was)}, now {_short(is_)}); "
            "give what it was begun with, or another --out",
        )


def _where(was: Any, now: Any) -> tuple[Any, Any]:
    """The parts of two mappings that differ."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return was, now
    parts = {
        key: _where(was.get(key), now.get(key)) for key in {**was, **now} if was.get(key) != now.get(key)
    }
    return {key: a for key, (a, _) in parts.items()}, {key: b for key, (_, b) in parts.items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
