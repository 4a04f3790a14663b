"""Room on a disk."""

from __future__ import annotations

import shutil
from pathlib import Path


def free(path: Path) -> int:
    """Bytes that are free where a file or folder is, or will be."""
    place = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(place).free
