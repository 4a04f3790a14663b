"""The bench runs every model in a process of its own, in turns, and says what it measured."""

from __future__ import annotations

import gc
import json
import math
import random
import re
import weakref

import pytest
from llmprune_eval import bench, figures, keeping, ratios, runner
from llmprune_eval.bench import compare, rows
from llmprune_eval.runner import Load, Runner
from llmprune_eval.runs import read_all
from llmprune_kernels import acceleration
from torch import nn

from llmprune import prune
from llmprune.errors import RequestError
from tests import tiny
from tests.program import run


def test_a_cut_model_is_measured_beside_the_dense_one(checkpoints, tmp_path):
    pattern = {"name": "units", "multiple": 8}
    asked = {"method": "magnitude", "pattern": pattern, "sparsity": 0.4, "allocation": "uniform"}
    report = prune(checkpoints("llama"), asked, out=tmp_path / "out")
    options = ["--prompt", "8", "--new-tokens", "4", "--repeats", "6"]
    options += ["--seconds", "1", "--save", "--json"]
    done = run("bench", tmp_path / "out", "--baseline", checkpoints("llama"), *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    dense, pruned = found["models"]
    assert pruned["parameters"] == report.totals["parameters_after"] < dense["parameters"]
    assert dense["parameters"] == sum(p.numel() for p in tiny.model("llama").parameters())
    assert min(dense["prefill_tokens_per_s"], pruned["decode_tokens_per_s"]) > 0
    assert pruned["weight_bytes"] == 4 * pruned["parameters"]
    shown = dict(rows(found))
    measured = found["ratios"]["decode_tokens_per_s"]
    (low, high), ratio = measured["interval"], measured["ratio"]
    assert low <= ratio <= high
    assert shown["decode, tokens per second"].endswith(f"{ratio:.3f} [{low:.3f}, {high:.3f}]")
    assert found["ratios"].keys() == dense["quartiles"].keys()
    for name, (first, third) in pruned["quartiles"].items():
        assert 0 < first <= pruned[name] <= third
    assert shown["parameters"].endswith(f"{pruned['parameters'] / dense['parameters']:.3f}")
    assert dense["kv_bytes_per_token"] == 3 * 2 * 2 * 8 * 4  # blocks, K and V, heads, their size, float32
    for one in (dense, pruned):
        rate = one["characters_per_token"] * one["decode_tokens_per_s"]
        assert one["decode_characters_per_s"] == pytest.approx(rate)
    assert shown["protocol"] == found["protocol"]
    assert found["protocol"].startswith("batch 1, prompt 8, 4 new tokens, float32, cpu with")
    assert re.search(
        r"; medians of \d+ pairs in alternating order, after a warm-up, until ", found["protocol"]
    )
    assert not dense["kernels"] and "every layer stays dense: the kernels need a GPU" in pruned["kernels"]
    assert shown["kernels"].startswith("every layer stays dense")

    (kept,) = read_all([tmp_path / "out"])
    assert figures.speed(kept, "decode") == pytest.approx(ratio)
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
    Runner.opened(str(checkpoints("llama")), Load(1, 8, 2, 1), where, kernels=True)
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
    assert "| decode, tokens per second | 1.0 | 3.0 | 3.000 |" in card
    assert "| quick | | | |" in card
    (kept,) = read_all([tmp_path / "out"])
    assert figures.speed(kept, "decode") == 3
    assert kept.texts()[0]["perplexity"] == 5


@pytest.mark.usefixtures("models_forked")
def test_a_model_beside_itself_shows_what_the_kernels_do(checkpoints):
    same = [str(checkpoints("llama"))] * 2
    found = compare(same, Load(1, 8, 2, 1, seconds=0), {"device": "cpu"})
    without, with_them = found["models"]
    assert found["ratios"]["decode_tokens_per_s"]["interval"] is None
    assert "of 1 pairs" in found["protocol"] and "until 0 s had passed" in found["protocol"]
    assert not without["kernels"]
    assert with_them["kernels"].startswith("kernels: ")


@pytest.mark.usefixtures("models_forked")
def test_more_tokens_than_a_model_has_positions_for_are_refused(checkpoints):
    asked, said = Load(1, tiny.CONTEXT, 1, 1), "prompt: 64 tokens and 1 after them were asked"
    with pytest.raises(RequestError, match=said):
        compare([str(checkpoints("gpt2"))], asked, {"device": "cpu"})
    with pytest.raises(RequestError, match=said):
        runner.require_positions(tiny.model("opt"), "opt", asked)
    runner.require_positions(tiny.model("opt"), "opt", Load(1, tiny.CONTEXT - 1, 1, 1))
    runner.require_positions(tiny.model("llama"), "llama", asked)


@pytest.mark.usefixtures("models_forked")
def test_a_model_on_its_own_has_quartiles(checkpoints):
    found = compare([str(checkpoints("llama"))], Load(2, 8, 2, 3), {"device": "cpu"})
    (model,) = found["models"]
    first, third = model["quartiles"]["decode_tokens_per_s"]
    shown = dict(rows(found))["decode, tokens per second"]
    assert shown.strip() == f"{model['decode_tokens_per_s']:.1f} [{first:.1f}, {third:.1f}]"
    assert found["protocol"].endswith("eager; medians and quartiles of 3 measurements, after a warm-up")
    assert "ratios" not in found


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_cache_is_that_of_the_layers_as_they_are(checkpoints, family):
    where = {"device": "cpu", "dtype": "bfloat16", "trust_remote_code": False}
    one = Runner.opened(str(checkpoints(family)), Load(2, 12, 1), where, kernels=False)
    times = one.prefill()
    assert 0 < times["prefill"] <= times["first_token"]
    tokens = {"gemma2": 2 * 7 + 12}.get(family, 3 * 12)  # two of its blocks look back over 8 tokens only
    features = {"gpt2": 4 * 8}.get(family, 2 * 8)  # heads and their size
    assert one.memory()["kv_bytes_per_token"] == pytest.approx(2 * features * 2 * tokens / 12)


def noisy(noise: float, ratio: float):
    """What a turn of two models takes, the second so many times as fast, on a machine of changing load."""

    def turn(_):
        load = math.exp(random.gauss(0, 0.3))  # of the machine; both models feel it
        each = [load * math.exp(random.gauss(0, noise)) / speed for speed in (1.0, ratio)]
        return [{"prefill": one, "first_token": one, "decode": one} for one in each]

    return turn


@pytest.mark.parametrize(("noise", "most"), [(0.01, 100), (0.05, 100), (0.3, 40)])
def test_the_interval_holds_the_true_ratio_19_times_in_20(noise, most):
    """Where pairs stop as soon as it is narrow, and where it never gets so."""
    random.seed(1)
    facts, held, runs = [{"characters_per_token": 4.0}, {"characters_per_token": 3.0}], 0, 200
    for _ in range(runs):
        clock = iter(range(1000)).__next__
        turns, why = bench.repeated(noisy(noise, 1.25), facts, Load(seconds=most), clock)
        found = bench._ratios(turns, facts, Load())
        (low, high), ratio = (found["decode_tokens_per_s"][key] for key in ("interval", "ratio"))
        held += low <= 1.25 <= high
        assert ("within 3%" in why) == ((high - low) / 2 <= 0.03 * ratio)
        assert 6 <= len(turns) <= most + 5  # the clock is first looked at after six
        assert found["decode_characters_per_s"]["ratio"] == pytest.approx(ratio * 3 / 4)
    assert 0.92 <= held / runs <= 0.995


def test_few_pairs_have_no_interval_and_more_have_that_of_the_sign_test():
    pairs = [(1.0, float(n)) for n in range(1, 21)]
    assert ratios.of(pairs[:5]) == {"ratio": 3.0, "interval": None}
    assert not ratios.within(ratios.of(pairs[:5]), 1.0)
    assert ratios.of(pairs[:6])["interval"] == [1.0, 6.0]
    assert ratios.of(pairs) == {"ratio": 10.5, "interval": [6.0, 15.0]}  # as in its tables for 20
    assert ratios.of([(2.0, 2.0)] * 3000) == {"ratio": 1.0, "interval": [1.0, 1.0]}
