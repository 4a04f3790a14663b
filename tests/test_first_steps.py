"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.eval.test_talk import dense as dense
from tests.test_architecture import ROOT

NOTEBOOK = ROOT / "recipes" / "first-steps.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(dense: Path, tmp_path: Path) -> None:
    cells = [one for one in json.loads(NOTEBOOK.read_text())["cells"] if one["cell_type"] == "code"]
    assert all(one["outputs"] == [] and one["execution_count"] is None for one in cells)
    code = "\n".join("".join(one["source"]) for one in cells)
    small = {
        '"flap-20"': '{"method": "flap", "sparsity": 0.5, "repair": "none", "pattern": {"multiple": 8}}',
        '"HuggingFaceTB/SmolLM2-135M-Instruct"': repr(str(dense)),
        '"samples": 16, "length": 256': '"samples": 4, "length": 64',
        '"tokens": "32k"': '"tokens": "2k", "batch_tokens": 256, "products": "float32"',
        'calibration={"dataset": "builtin"}': 'calibration={"dataset": "builtin", "length": 64}',
        'file, "q8_0")': 'file, "f16")',  # of rows that are too short for blocks of 32
        "Protocol(length=256, windows=8)": "Protocol(length=64, windows=2)",
    }
    for said, instead in small.items():
        assert said in code
        code = code.replace(said, instead)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "taught-q8_0.gguf").stat().st_size > 10_000
