"""One run at a time writes into a folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from llmprune import ranks
from llmprune.errors import RequestError


class _Held(threading.local):
    """The folders that this thread holds, so that what it calls may hold them again."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()


_held = _Held()


@contextmanager
def held(out: Path | None) -> Iterator[None]:
    """Keep all other runs on this machine out of a folder.

    Args:
        out: the folder, which need not exist; None holds nothing.

    Raises:
        RequestError: another run writes into it.
    """
    folder = out.absolute() if out is not None else None
    if folder is None or folder in _held.folders:
        yield
        return
    lock = _lock(folder)
    ranks.from_first(lambda: _take(lock, folder))
    _held.folders.add(folder)
    try:
        yield
    finally:
        _held.folders.remove(folder)
        if ranks.first():
            _leave(lock)


def _lock(folder: Path) -> FileLock:
    """A file elsewhere: where a run is refused, nothing is left beside the folder."""
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
    return FileLock(Path(tempfile.gettempdir(), f"llmprune-{name}.lock"), timeout=0)


def _take(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire()
    except Timeout:
        raise RequestError(
            "out", f"another run is writing into {folder}; wait for it, or name another folder"
        ) from None


def _leave(lock: FileLock) -> None:
    with suppress(OSError):  # Windows deletes no file that is open
        Path(lock.lock_file).unlink()
    lock.release()
