"""The kernels' own code on the CPU, in its own process: Triton interprets from its import on, or never."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="needs triton: pip install triton"
)


def test_the_kernels_compute_what_they_specify() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", FOLDER],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and re.search(r"\b\d\d+ passed", ran.stdout), ran.stdout[-5000:]
