"""From a Hub id to a pruned, evaluated, carded repository, with one command, against a Hub on loopback."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.checkpoint.hub import Repository
from tests.checkpoint.writable_hub import Fault, WritableHub
from tests.conftest import SHARED
from tests.pushing.worker import PROGRAM, TOKEN, environment

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'llmprune[eval]'")
MODEL, DATA = SHARED / "models" / "stories260K", SHARED / "data"


@pytest.mark.slow
@pytest.mark.skipif(
    not MODEL.is_dir() or not DATA.is_dir(), reason="needs ../shared/models and ../shared/data"
)
def test_a_hub_model_ends_as_a_repository_that_is_loaded_by_its_name(tmp_path: Path) -> None:
    with WritableHub({"org/base": Repository.of(MODEL)}).served() as hub:
        assert isinstance(hub, WritableHub)
        env = environment(tmp_path / "home", hub.endpoint, HF_TOKEN=TOKEN)

        def llmprune(*words: object) -> subprocess.CompletedProcess[str]:
            command = [PROGRAM, *map(str, words)]
            return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

        pruning = ["prune", "org/base", "--method", "flap", "--sparsity", "0.2", "--multiple", "4"]
        pruning += ["--calibration", "builtin", "--samples", "4", "--length", "64", "--data", DATA]
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
        asked = ["--perplexity", "builtin", "--length", "64", "--windows", "2", "--json"]
        evaluated = llmprune("eval", "me/base-flap20", *asked)
        assert evaluated.returncode == 0, evaluated.stderr
        assert json.loads(evaluated.stdout)["model"]["perplexity"][0]["windows"] == 2
