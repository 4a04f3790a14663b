"""Room on a disk."""

from __future__ import annotations

import shutil
from pathlib import Path


def free(path: Path) -> int:
    """Bytes that are free where a file or folder is, or will be."""
    return shutil.disk_usage(_place(path)).free


def same(path: Path, other: Path) -> bool:
    """Whether two of them are on one disk."""
    return _place(path).stat().st_dev == _place(other).stat().st_dev


def _place(path: Path) -> Path:
    """The folder nearest to it that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
