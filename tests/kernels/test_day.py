"""The script for a day with a GPU, rehearsed on the CPU: every stage ends, and leaves its file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_architecture import ROOT

SCRIPT = ROOT / "kernels" / "benchmarks" / "day.sh"
MINUTES = 9


def test_the_stages_fit_into_nine_minutes() -> None:
    limits = [int(found) for found in re.findall(r"^stage \w+ (\d+) ", SCRIPT.read_text(), re.MULTILINE)]
    assert len(limits) == 6 and sum(limits) <= 60 * MINUTES


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    words = [sys.executable, ROOT / "kernels" / "benchmarks" / "numerics.py", "--out", tmp_path]
    env = {"PYTHONPATH": f"{ROOT / 'kernels'}"}
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode == 1 and "there is none here; --dry rehearses it" in done.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_the_rehearsal_leaves_every_file(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, "--dry", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = (tmp_path / "out" / "stages.txt").read_text().splitlines()
    assert [line.partition(":")[0][0] for line in told] == list("abcdef")
    assert all(" exit 0 after " in line for line in told)
    files = {file.name: file for file in (tmp_path / "out").iterdir()}
    assert len(files) <= 8  # so many may be brought back
    rows = json.loads(files["rehearsal_numerics.json"].read_text())["rows"]
    assert len(rows) > 100 and all(row["error"] <= row["allowed"] for row in rows)
    table = json.loads(files["rehearsal_bfloat16.json"].read_text())["rows"]
    assert {row["provider"] for row in table if row["us"]} >= {"cublas", "ours", "ours, portable"}
    decoded = [row["model"] for row in json.loads(files["rehearsal_decode.json"].read_text())["rows"]]
    assert decoded == ["dense", "2:4", "30 % of the channels", "6 of 32 blocks"]
    pruned = json.loads(files["pruning.json"].read_text())["rows"]
    assert {name.partition("-")[0] for name in pruned} == {"wanda", "sparsegpt", "flap"}
