"""A small disk, so that it can be full; `disk` is its fixture."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE = 1 << 20


@contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """A disk of a mebibyte, which lies in memory."""
    if os.geteuid():
        pytest.skip("mounting a small disk takes root")
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place]).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(place: Path, leave: int) -> Path:
    """Take all of a disk but some bytes."""
    hog = place / "hog"
    hog.write_bytes(b"\0" * max(0, shutil.disk_usage(place).free - leave))
    return hog


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Let nobody write to a disk, not even root."""
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
