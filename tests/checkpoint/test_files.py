"""Small files are written whole and together, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmprune.checkpoint.files import write_atomically
from llmprune.errors import JobError
from tests.disk import fill, read_only


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_are_written_in_place_of_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    write_atomically({tmp_path / "a": "é\n", tmp_path / "b": "new"})
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    assert sorted(contents(tmp_path)) == ["a", "b"]


def test_nothing_is_written_where_a_disk_is_full(disk: Path) -> None:
    """The first file would have had room."""
    for name in "ab":
        (disk / name).write_text("old")
    fill(disk, 1 << 14)
    (before := contents(disk)).pop("hog")
    with pytest.raises(
        JobError, match=f"^cannot write {disk}/a, {disk}/b: No space left on device; "
    ) as caught:
        write_atomically({disk / "a": "new", disk / "b": "new" * (1 << 14)})
    assert "\n" not in str(caught.value)
    (disk / "hog").unlink()
    assert contents(disk) == before


def test_nothing_is_written_where_nobody_may(disk: Path) -> None:
    (disk / "a").write_text("old")
    with read_only(disk), pytest.raises(JobError, match="Read-only file system"):
        write_atomically({disk / "a": "new"})
    assert contents(disk) == {"a": "old"}


def test_a_write_that_is_stopped_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr("llmprune.checkpoint.files.os.fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_atomically({tmp_path / "a": "new"})
    assert contents(tmp_path) == {"a": "old"}
