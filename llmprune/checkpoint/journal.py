"""The journal, from which `--resume` reads: a line for the run, and one for every finished block."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from llmprune.errors import RequestError
from llmprune.measured import BudgetTrial, Refit, SearchStep
from llmprune.report import SiteRecord

Fingerprint = dict[str, object]  # all that the bytes of a result depend on, as JSON


class RunHeader(BaseModel):
    """The first line of the journal: all that the bytes of the result depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: Fingerprint
    """The request, model, text and machine; they must be the same when the run is resumed."""

    batch: int = 1
    """Sequences that go through a block together."""

    together: bool = False
    """Whether all batches wait at each layer. Like `batch`, it changes how sums are rounded."""

    budget: dict[str, float] = {}
    """The share to remove at every site, by its name."""

    tried: list[BudgetTrial] = []
    """The budgets that this one was chosen from."""

    searched: list[SearchStep] = []
    """How a search came to it."""


class BlockRecord(BaseModel):
    """The journal's line for one block whose shard is complete. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sites: list[SiteRecord] = []
    refits: list[Refit] = []
    """The layers that a recovery solved again."""

    zeros: int | None = None
    """In the matrices of the block, where an earlier pruning may have left some."""

    forward_s: float = 0.0
    solve_s: float = 0.0
    write_s: float = 0.0
    keys: list[str] = []
    """Of the tensors in the shard."""


def complete_lines(journal: Path) -> list[dict[str, Any]]:
    """Read the lines of the journal, up to the first incomplete one."""
    lines: list[dict[str, Any]] = []
    if not journal.is_file():
        return lines
    for text in journal.read_text().splitlines(keepends=True):
        if not text.endswith("\n"):  # the run was killed while it wrote this line
            break
        lines.append(json.loads(text))
    return lines


def rewrite(journal: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write the complete lines only, so that the next one is not appended to an incomplete line."""
    part = journal.with_name("journal.part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    part.replace(journal)


def require_same(begun: Fingerprint, now: Fingerprint, out: Path) -> None:
    """Refuse to resume a run with another fingerprint.

    Raises:
        RequestError: the fingerprints differ; the message names the first difference.
    """
    differing = [key for key in now if begun.get(key) != now[key]]
    if differing:
        key = differing[0]
        was, is_ = _difference(begun.get(key), now[key])
        raise RequestError(
            "resume",
            f"{out} was begun with another {key} ({_short(was)}, now {_short(is_)}); "
            "give what it was begun with, or another --out",
        )


def _difference(was: object, now: object) -> tuple[object, object]:
    """The entries in which two mappings differ, or both values if they are not mappings."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return was, now
    parts = {
        key: _difference(was.get(key), now.get(key)) for key in {**was, **now} if was.get(key) != now.get(key)
    }
    return {key: a for key, (a, _) in parts.items()}, {key: b for key, (_, b) in parts.items()}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
