"""From a Hub id to a pruned, evaluated, carded repository, with one command, against a Hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.checkpoint.hub import Repository
from tests.checkpoint.writable_hub import Fault, WritableHub
from tests.conftest import SHARED
from tests.hub.worker import PROGRAM, TOKEN, environment

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'llmprune[eval]'")
DATA = SHARED / "data"
LOADING = """
import llmprune
from transformers import AutoModelForCausalLM
print(sum(p.numel() for p in AutoModelForCausalLM.from_pretrained("me/base-flap20").parameters()))
"""


@pytest.fixture(params=["stories260K", "smollm2"])
def asked(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A dense model, and how it is pruned."""
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2"), "--recipe flap-20 --samples 16 --length 512"
    small = SHARED / "models" / "stories260K"
    if not small.is_dir():
        pytest.skip("needs ../shared/models")
    return small, "--method flap --sparsity 0.2 --multiple 4 --samples 4 --length 64"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_a_hub_model_ends_as_a_repository_that_is_loaded_by_its_name(
    asked: tuple[Path, str], tmp_path: Path
) -> None:
    dense, how = asked
    with WritableHub({"org/base": Repository.of(dense)}).served() as hub:
        assert isinstance(hub, WritableHub)
        env = environment(tmp_path / "home", hub.endpoint, HF_TOKEN=TOKEN)

        def llmprune(*words: object) -> subprocess.CompletedProcess[str]:
            command = [PROGRAM, *map(str, words)]
            return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

        pruning = ["prune", "org/base", *how.split(), "--calibration", "builtin", "--data", DATA]
        pruning += ["--set", "calibration.seed=3", "--eval", "quick", "--push-to-hub", "me/base-flap20"]
        hub.faults.append(Fault(r"POST .*/commit/", 500))
        done = llmprune(*pruning)
        assert done.returncode == 1, done.stderr
        assert done.stderr.splitlines()[-1].startswith("llmprune: ")
        hub.faults.clear()
        pruned = (tmp_path / "base-flap20" / "config.json").stat().st_mtime_ns

        done = llmprune(*pruning, "--json")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "base-flap20" / "config.json").stat().st_mtime_ns == pruned
        assert "evaluated already" in done.stderr
        report = json.loads(done.stdout)
        score = report["evaluation"]["model"]["tasks"]["arc_easy"]["acc_norm"]
        files = hub.versioned["me/base-flap20"].commits[hub.versioned["me/base-flap20"].branches["main"]]
        assert set(files) > {"config.json", "README.md", "llmprune_report.json", "recipe.yaml"}
        card = ModelCard(files["README.md"].decode())
        assert card.data.base_model == "org/base"
        shown = {r.dataset_name: r.metric_value for r in card.data.eval_results}
        assert shown["arc_easy"] == score

        hub.log.clear()
        assert llmprune(*pruning).returncode == 0
        assert not [line for line in hub.wrote() if line.startswith("PUT") or "/commit/" in line]
        protocol = ["--perplexity", "builtin", "--length", "64", "--windows", "2", "--json"]
        evaluated = llmprune("eval", "me/base-flap20", *protocol)
        assert evaluated.returncode == 0, evaluated.stderr
        assert json.loads(evaluated.stdout)["model"]["perplexity"][0]["windows"] == 2
        loaded = subprocess.run([sys.executable, "-c", LOADING], env=env, capture_output=True, text=True)
        assert loaded.returncode == 0, loaded.stderr
        assert int(loaded.stdout) == report["totals"]["parameters_after"]
