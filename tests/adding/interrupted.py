"""A run that is interrupted after its first block, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmprune import Report, prune
from llmprune.checkpoint.draft import Draft
from llmprune.errors import JobError
from tests.resume.children import hashes


def pruned_twice(model: Path, asked: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """Prune into `root / "out"`; interrupt the same run elsewhere, resume it, and require the same bytes."""
    report = prune(model, asked, out=root / "out")
    write = Draft.write_block

    def cut_off(self: Draft, block: int, *rest: Any) -> Any:
        if block == 1:
            raise JobError("interrupted")
        return write(self, block, *rest)

    with monkeypatch.context() as patch, pytest.raises(JobError, match="interrupted"):
        patch.setattr(Draft, "write_block", cut_off)
        prune(model, asked, out=root / "again")
    assert not (root / "again" / "config.json").exists()
    prune(model, asked, out=root / "again", resume=True)
    assert hashes(root / "again") == hashes(root / "out")
    return report
