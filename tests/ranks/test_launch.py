"""The command line under torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks.test_ends import written

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "llmprune"]
ONE = [sys.executable, "-m", "llmprune"]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = list(map(str, command))
    return subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.slow  # `test_results.py` compares them without the launcher
def test_two_processes_write_what_one_writes(model: Path, tmp_path: Path) -> None:
    text = ["--calibration", "builtin", "--samples", 70, "--length", 64]
    asked = ["prune", model, "--recipe", "wanda-2of4", *text, "--json", "--out"]
    one, two = run(*ONE, *asked, tmp_path / "1"), run(*LAUNCH, *asked, tmp_path / "2")
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert len(two.stdout.splitlines()) == 1
    assert written(tmp_path / "1") == written(tmp_path / "2") != {}


def test_a_wrong_request_is_told_once_and_ends_all(model: Path, tmp_path: Path) -> None:
    done = run(*LAUNCH, "prune", model, "--method", "wanda", "--sparsity", "1.5", "--out", tmp_path / "out")
    assert done.stderr.count("llmprune: sparsity: ") == 1
    assert set(re.findall(r"exitcode *: (-?\d+)", done.stderr)) == {"2"}
    assert done.stderr.count("Traceback") == 1  # torchrun's own
    assert not (tmp_path / "out").exists()
