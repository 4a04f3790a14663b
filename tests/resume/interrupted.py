"""A run that is interrupted between two blocks, and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmprune import Report, prune
from llmprune.checkpoint.draft import Draft
from tests.resume.children import hashes


@contextmanager
def interrupted(after: int) -> Iterator[None]:
    """Interrupt what runs inside once it has written so many blocks."""
    write, written = Draft.write_block, []

    def stop(self: Draft, *block: Any) -> Any:
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(block)
        return write(self, *block)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Draft, "write_block", stop)
        yield


def pruned_twice(model: Path, asked: dict[str, Any], root: Path) -> Report:
    """Prune into `root / "out"`; interrupt the same run elsewhere, resume it, and require the same bytes."""
    report = prune(model, asked, out=root / "out")
    with interrupted(after=1):
        prune(model, asked, out=root / "again")
    assert not (root / "again" / "config.json").exists()
    prune(model, asked, out=root / "again", resume=True)
    assert hashes(root / "again") == hashes(root / "out")
    return report
