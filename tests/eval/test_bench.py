"""The bench runs every model in a process of its own, in turns, and says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from llmprune import prune
from tests import tiny

PROGRAM = Path(sys.executable).with_name("llmprune")


def test_a_cut_model_is_measured_beside_the_dense_one(checkpoints, tmp_path):
    pattern = {"name": "units", "multiple": 8}
    asked = {"method": "magnitude", "pattern": pattern, "sparsity": 0.4, "allocation": "uniform"}
    report = prune(checkpoints("llama"), asked, out=tmp_path / "out")
    command = [PROGRAM, "bench", tmp_path / "out", "--baseline", checkpoints("llama")]
    options = ["--prompt", "8", "--new-tokens", "4", "--repeats", "2"]
    shown = subprocess.run([*command, *options], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "ratio of decode_tokens_per_s" in shown.stdout
    assert "batch 1, prompt 8, 4 new tokens, float32; medians of 2 in turns" in shown.stdout
    found = json.loads(subprocess.run([*command, *options, "--json"], capture_output=True, text=True).stdout)
    dense, pruned = found["models"]
    assert pruned["parameters"] == report.totals["parameters_after"] < dense["parameters"]
    assert dense["parameters"] == sum(p.numel() for p in tiny.model("llama").parameters())
    assert min(dense["prefill_tokens_per_s"], pruned["decode_tokens_per_s"]) > 0
    assert pruned["weight_bytes"] == 4 * pruned["parameters"]


def test_a_model_that_is_not_there_is_refused(tmp_path):
    done = subprocess.run([PROGRAM, "bench", tmp_path / "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("llmprune: model: ")
    assert "Traceback" not in done.stderr
