"""The bench runs every model in a process of its own, in turns, and says what it measured."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from llmprune_eval import bench, figures, keeping
from llmprune_eval.bench import Load, compare, rows
from llmprune_eval.runs import read_all
from llmprune_kernels import acceleration
from torch import nn

from llmprune import prune
from llmprune.errors import RequestError
from tests import tiny

PROGRAM = Path(sys.executable).with_name("llmprune")


def test_a_cut_model_is_measured_beside_the_dense_one(checkpoints, tmp_path):
    pattern = {"name": "units", "multiple": 8}
    asked = {"method": "magnitude", "pattern": pattern, "sparsity": 0.4, "allocation": "uniform"}
    report = prune(checkpoints("llama"), asked, out=tmp_path / "out")
    command = [PROGRAM, "bench", tmp_path / "out", "--baseline", checkpoints("llama")]
    options = ["--prompt", "8", "--new-tokens", "4", "--repeats", "2"]
    options += ["--save", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
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
    assert shown["protocol"] == found["protocol"]
    assert found["protocol"].startswith("batch 1, prompt 8, 4 new tokens, float32, cpu with")
    assert found["protocol"].endswith("medians of 2 in turns, after a warm-up")
    assert not dense["kernels"] and "every layer stays dense: the kernels need a GPU" in pruned["kernels"]
    assert shown["kernels"].startswith("every layer stays dense")

    (run,) = read_all([tmp_path / "out"])
    assert figures.speed(run, "decode") == pytest.approx(ratio)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("## Speed") == 1
    assert f"| decode, tokens per second | {dense['decode_tokens_per_s']:.1f} |" in card


def test_nothing_holds_on_to_weights_that_kernels_replace(checkpoints, monkeypatch):
    """They would count as the pruned model's memory."""
    alive = []

    def replace(model):
        mlp = model.model.layers[0].mlp
        old = weakref.ref(mlp.gate_proj.weight)
        mlp.gate_proj = nn.Identity()
        gc.collect()
        alive.append(old() is not None)

    monkeypatch.setattr(acceleration, "accelerate", replace)
    where = {"device": "cpu", "dtype": "float32", "trust_remote_code": False}
    bench._Runner(str(checkpoints("llama")), Load(1, 8, 2, 1), where, kernels=True)
    assert alive == [False]


def test_speed_and_quality_are_kept_beside_each_other(checkpoints, tmp_path):
    """Each is measured anew without the other being lost."""
    prune(checkpoints("llama"), {"method": "magnitude", "pattern": "2:4"}, out=tmp_path / "out")
    models = [{"prefill_tokens_per_s": 10.0, "decode_tokens_per_s": rate} for rate in (1.0, 2.0)]
    text = {"dataset": "t", "perplexity": 5.0, "protocol": "p"}
    for rate in (2.0, 3.0):
        models[-1]["decode_tokens_per_s"] = rate
        keeping.keep_speed(tmp_path / "out", {"protocol": "quick", "models": models})
        keeping.keep({"model": {"name": str(tmp_path / "out"), "perplexity": [text]}})
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("## Speed") == card.count("## Quality") == card.count("## Load it") == 1
    assert "| decode, tokens per second | 1.0 | 3.0 | quick |" in card
    (run,) = read_all([tmp_path / "out"])
    assert figures.speed(run, "decode") == 3
    assert run.texts()[0]["perplexity"] == 5


def test_a_model_beside_itself_shows_what_the_kernels_do(checkpoints):
    same = [str(checkpoints("llama"))] * 2
    found = compare(same, Load(1, 8, 2, 1), device="cpu", dtype="auto", trust=False)
    without, with_them = found["models"]
    assert not without["kernels"]
    assert with_them["kernels"].startswith("kernels: ")


def test_more_tokens_than_a_model_has_positions_for_are_refused(checkpoints):
    asked, said = Load(1, tiny.CONTEXT, 1, 1), "prompt: 64 tokens and 1 after them were asked"
    with pytest.raises(RequestError, match=said):
        compare([str(checkpoints("gpt2"))], asked, device="cpu", dtype="auto", trust=False)
    with pytest.raises(RequestError, match=said):
        bench._require_positions(tiny.model("opt"), "opt", asked)
    bench._require_positions(tiny.model("opt"), "opt", Load(1, tiny.CONTEXT - 1, 1, 1))
    bench._require_positions(tiny.model("llama"), "llama", asked)
