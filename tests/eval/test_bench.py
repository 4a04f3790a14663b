"""The bench runs every model in a process of its own, in turns, and says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from llmprune_eval.bench import rows

from llmprune import prune
from tests import tiny

PROGRAM = Path(sys.executable).with_name("llmprune")


def test_a_cut_model_is_measured_beside_the_dense_one(checkpoints, tmp_path):
    pattern = {"name": "units", "multiple": 8}
    asked = {"method": "magnitude", "pattern": pattern, "sparsity": 0.4, "allocation": "uniform"}
    report = prune(checkpoints("llama"), asked, out=tmp_path / "out")
    command = [PROGRAM, "bench", tmp_path / "out", "--baseline", checkpoints("llama")]
    options = ["--prompt", "8", "--new-tokens", "4", "--repeats", "2"]
    done = subprocess.run([*command, *options, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    dense, pruned = found["models"]
    assert pruned["parameters"] == report.totals["parameters_after"] < dense["parameters"]
    assert dense["parameters"] == sum(p.numel() for p in tiny.model("llama").parameters())
    assert min(dense["prefill_tokens_per_s"], pruned["decode_tokens_per_s"]) > 0
    assert pruned["weight_bytes"] == 4 * pruned["parameters"]
    shown = dict(rows(found))
    ratio = pruned["decode_tokens_per_s"] / dense["decode_tokens_per_s"]
    assert shown["ratio of decode_tokens_per_s"] == f"{ratio:.3f}"
    how = "batch 1, prompt 8, 4 new tokens, float32; medians of 2 in turns, after a warm-up"
    assert shown["protocol"] == how
