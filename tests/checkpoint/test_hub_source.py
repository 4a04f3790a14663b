"""Checkpoints on the Hub, named by id on the command line, while the Hub is reachable and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from llmprune.checkpoint import shards
from tests import tiny
from tests.checkpoint.hub import COMMIT, Hub, Repository

ROOT = Path(__file__).parents[2]

RUN = """
import contextlib, io, json, sys
from llmprune.cli import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["llmprune", *line]
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
        except BaseException as error:
            code = repr(error)
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}))
"""


def commands(home: Path, endpoint: str, lines: list[list[str]], **more: str) -> list[dict[str, Any]]:
    """The output of each command line; all run in one fresh process that knows only our Hub."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", RUN, json.dumps(lines)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def on_hub(checkpoints: tiny.Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outputs for models on a Hub: while it was reachable, and after it was stopped."""
    root = tmp_path_factory.mktemp("hub")
    tiny_one = checkpoints("llama")
    pickled = Repository.of(tiny_one, "f" * 40)
    pickled.files["pytorch_model.bin"] = pickled.files.pop("model.safetensors")
    split = Repository.of(tiny.save("llama", root / "split", shard="20KB"), "e" * 40)
    hub = Hub({"me/tiny": Repository.of(tiny_one), "me/pickled": pickled, "me/split": split})
    ask = ["--method", "wanda", "--samples", "2", "--length", "16", "--json"]
    home = root / "home"
    lines = {
        "inspect": ["inspect", "me/tiny", "--json"],
        "pickled": ["prune", "me/pickled", *ask, "--out", str(root / "pickled")],
        "absent": ["prune", "me/absent", *ask, "--out", str(root / "absent")],
        "revision": ["prune", f"me/tiny@{'a' * 40}", *ask, "--out", str(root / "revision")],
        "prune": ["prune", f"me/tiny@{COMMIT}", *ask, "--out", str(root / "pruned")],
        "split": ["inspect", "me/split", "--json"],
    }
    with hub.served():
        said = dict(zip(lines, commands(home, hub.endpoint, list(lines.values())), strict=True))
    after = {
        "offline": ["inspect", "me/tiny", "--json"],
        "offline revision": ["inspect", f"me/tiny@{COMMIT}", "--json"],
        "offline absent": ["inspect", "me/elsewhere", "--json"],
    }
    with ThreadPoolExecutor() as pool:
        ask_again = pool.submit(commands, home, hub.endpoint, list(after.values()), HF_HUB_OFFLINE="1")
        gone = {"gone": lines["inspect"], "gone weights": lines["split"]}
        said |= zip(gone, commands(home, hub.endpoint, list(gone.values())), strict=True)
        said |= zip(after, ask_again.result(), strict=True)
    return {**said, "hub": hub, "root": root}


def test_a_hub_id_is_inspected(on_hub: dict[str, Any]) -> None:
    assert on_hub["inspect"]["code"] == 0
    plan = json.loads(on_hub["inspect"]["out"])["plan"]
    assert plan["blocks"] == 3
    assert plan["family"] == "llama"


def test_a_hub_id_with_a_revision_is_pruned(on_hub: dict[str, Any]) -> None:
    assert on_hub["prune"]["code"] == 0, on_hub["prune"]["err"]
    report = json.loads(on_hub["prune"]["out"])
    assert report["model"]["source"] == "me/tiny"
    assert report["model"]["revision"] == COMMIT
    assert report["totals"]["sparsity"] == 0.5
    model = AutoModelForCausalLM.from_pretrained(on_hub["root"] / "pruned")
    assert (model.model.layers[0].mlp.up_proj.weight == 0).float().mean() == 0.5


def test_a_hub_checkpoint_in_shards_is_inspected_without_fetching_them(on_hub: dict[str, Any]) -> None:
    assert on_hub["split"]["code"] == 0, on_hub["split"]["err"]
    plan = json.loads(on_hub["split"]["out"])["plan"]
    assert plan["checkpoint_bytes"] == json.loads(on_hub["inspect"]["out"])["plan"]["checkpoint_bytes"]
    hub = on_hub["hub"]
    assert shards.INDEX in hub.sent()
    assert len([name for name in hub.sent(206) if name.startswith("model-")]) > 3
    assert not [name for name in hub.sent() if name.startswith("model-")]


def test_only_a_prune_fetches_the_weights(on_hub: dict[str, Any]) -> None:
    whole = [line for line in on_hub["hub"].log if "model.safetensors " in line and line.endswith(" 200")]
    assert [line for line in whole if line.startswith("GET")] == [
        f"GET /me/tiny/resolve/{COMMIT}/model.safetensors 200"
    ]


def test_pickled_weights_on_the_hub_are_refused_without_fetching_them(on_hub: dict[str, Any]) -> None:
    said = on_hub["pickled"]
    assert said["code"] == 2
    assert "holds no safetensors weights" in said["err"]
    assert "convert it with" in said["err"]
    assert [line for line in on_hub["hub"].log if line.startswith("GET /me/pickled/resolve/")]
    assert not [line for line in on_hub["hub"].log if "pytorch_model.bin" in line]


@pytest.mark.parametrize(
    ("which", "name"),
    [("absent", "me/absent"), ("revision", "me/tiny@aaaa"), ("offline absent", "me/elsewhere")],
)
def test_what_is_not_on_the_hub_is_one_sentence(on_hub: dict[str, Any], which: str, name: str) -> None:
    said = on_hub[which]
    assert said["code"] == 2
    assert said["out"] == ""
    assert said["err"].startswith("llmprune: model: ")
    assert name in said["err"]
    assert said["err"].count("\n") == 1


def test_weights_that_are_out_of_reach_are_one_sentence(on_hub: dict[str, Any]) -> None:
    said = on_hub["gone weights"]
    assert said["code"] == 1
    assert said["out"] == ""
    assert said["err"].startswith("llmprune: ")
    assert "me/split" in said["err"]
    assert said["err"].count("\n") == 1


def test_a_refused_hub_model_leaves_no_folder(on_hub: dict[str, Any]) -> None:
    assert not [name for name in ("pickled", "absent", "revision") if (on_hub["root"] / name).exists()]


@pytest.mark.parametrize("which", ["offline", "offline revision", "gone"])
def test_a_cached_model_does_without_the_hub(on_hub: dict[str, Any], which: str) -> None:
    assert on_hub[which]["code"] == 0, on_hub[which]["err"]
    assert json.loads(on_hub[which]["out"])["plan"]["blocks"] == 3
