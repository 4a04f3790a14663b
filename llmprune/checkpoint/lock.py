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
    """Keep the user's other runs out of a folder: those on this machine that have the same temporary folder.

    Args:
        out: the folder, which need not exist; None holds nothing.

    Raises:
        RequestError: another run writes into it.
    """
    folder = Path(os.path.realpath(out)) if out is not None else None
    if folder is None or folder in _held.folders:
        yield
        return
    taken: list[FileLock] = []  # by the first rank
    ranks.from_first(lambda: taken.append(_taken(folder)))
    _held.folders.add(folder)
    try:
        yield
    finally:
        _held.folders.remove(folder)
        for lock in taken:
            _leave(lock)


def _taken(folder: Path) -> FileLock:
    """Take the lock of a folder: a file elsewhere, so that a refused run leaves nothing beside the folder."""
    name = hashlib.sha256(f"{Path.home()}\0{folder}".encode(errors="surrogateescape")).hexdigest()[:32]
    try:
        lock = FileLock(Path(tempfile.gettempdir(), f"llmprune-{name}.lock"), timeout=0)
        lock.acquire()
    except Timeout:
        raise RequestError(
            "out", f"another run is writing into {folder}; wait for it, or name another folder"
        ) from None
    except OSError as error:
        raise RequestError(
            "out",
            f"{folder} cannot be kept from other runs: {error}; set TMPDIR to a folder that can be written",
        ) from error
    return lock


def _leave(lock: FileLock) -> None:
    with suppress(OSError):  # Windows deletes no file that is open
        Path(lock.lock_file).unlink()
    lock.release()
