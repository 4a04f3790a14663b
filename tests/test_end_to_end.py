"""The command line in a subprocess, on a real model: SmolLM2-135M-Instruct, taken from PyPI."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from tests.conftest import SHARED
from tests.program import run

LLMPRUNE = Path(sys.executable).with_name("llmprune")
WIKITEXT = SHARED / "data/Salesforce/wikitext/wikitext-2-raw-v1/test.parquet"


def llmprune(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LLMPRUNE, *map(str, words)], capture_output=True, text=True, env=os.environ.copy())


@pytest.fixture(scope="session")
def pruned(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "out"
    done = llmprune(*_prune(smollm2, out))
    assert done.returncode == 0, done.stderr
    return out


def _prune(model: Path, out: Path) -> list[object]:
    words = ["prune", model, "--method", "wanda", "--pattern", "2:4", "--calibration", "builtin"]
    return [*words, "--samples", 8, "--length", 256, "--out", out]


def test_every_group_of_four_of_a_real_model_has_two_exact_zeros(pruned: Path):
    model = AutoModelForCausalLM.from_pretrained(pruned)
    for site in Anatomy(model, LinearLayers()).sites:
        zeros = (site.matrix(site.weight).reshape(-1, 4) == 0).sum(1)
        assert (zeros >= 2).all(), site.name  # a few weights were zero before
        assert (zeros == 2).float().mean() > 0.99, site.name
    report = json.loads((pruned / "llmprune_report.json").read_text())
    assert report["totals"]["sparsity"] == 0.5
    assert report["reload"]["compared"] == "logits"
    assert all(site["reached"] == 0.5 and 0 < site["error"] < 1 for site in report["sites"])


def test_the_same_command_again_is_refused(smollm2: Path, pruned: Path):
    again = llmprune(*_prune(smollm2, pruned))
    assert again.returncode == 2
    assert again.stderr.startswith("llmprune: out: ")
    assert len(again.stderr.splitlines()) == 1


def test_both_perplexities_are_printed_with_their_protocol(smollm2: Path, pruned: Path):
    text = WIKITEXT if WIKITEXT.exists() else "builtin"
    words = ["eval", pruned, "--perplexity", text, "--length", 128, "--windows", 2, "--baseline", smollm2]
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    dense, sparse = (found[role]["perplexity"][0] for role in ("baseline", "model"))
    assert 1 < dense["perplexity"] < sparse["perplexity"] < 2000
    protocol = ("dataset", "split", "length", "stride", "bos", "tokenizer", "windows", "dtype")
    assert {key: dense[key] for key in protocol} == {key: sparse[key] for key in protocol}


@pytest.mark.slow
def test_a_recipe_cuts_heads_and_channels_and_a_recovery_follows(smollm2: Path, tmp_path: Path) -> None:
    text = ("--calibration", "builtin", "--samples", "4", "--length", "128")
    done = llmprune("prune", smollm2, "--recipe", "flap-20", *text, "--out", tmp_path / "o1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["totals"]["sparsity"] == pytest.approx(0.2, abs=1e-3)
    assert report["reload"]["line"].endswith("trust_remote_code=True)")
    done = llmprune("recover", tmp_path / "o1", "--method", "reconstruct", "--json")
    assert done.returncode == 0, done.stderr
    sites = json.loads(done.stdout)["recovery"]["sites"]
    assert sum(site["error_after"] for site in sites) < sum(site["error_before"] for site in sites)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "o1-recovered", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == report["totals"]["parameters_after"]


@pytest.mark.slow
def test_the_demo_makes_a_model_smaller_in_ten_minutes(tmp_path: Path):
    command = [LLMPRUNE, "demo", "--out", tmp_path / "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["totals"]["bytes_after"] < 0.85 * found["totals"]["bytes_before"]
    assert 1 < found["pruned"]["bits_per_byte"] / found["dense"]["bits_per_byte"] < 1.13
    assert 0 < found["agreement"]["kl"] < 0.5 and found["answers"]["dense"]
    assert Path(found["gguf"]).stat().st_size > 1e8 and (tmp_path / "demo.html").is_file()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)  # resumes at its end
    assert json.loads(again.stdout) == found
