"""A target is reached by the candidate that held-out text judges best, and by an ordinary recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llmprune_eval.blocks import Latencies
from transformers import AutoModelForCausalLM

from llmprune import prune
from llmprune.checkpoint import source
from llmprune.checkpoint.resources import resources
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError
from llmprune.planning import candidates, planner, reaching
from llmprune.planning.judging import Judge, opened
from llmprune.planning.reaching import plan, reach
from llmprune.planning.target import Target
from llmprune.recipe import Recipe
from llmprune.report import read
from llmprune.run.asked import Run
from tests import tiny
from tests.cli.command import main
from tests.resume.children import hashes
from tests.resume.interrupted import interrupted
from tests.vocabulary import tokenizers_here as here

pytestmark = pytest.mark.usefixtures("check_in_process")
TEXT = {"dataset": "builtin", "samples": 4, "length": 32}
WORDS = ["--calibration", "builtin", "--samples", "4", "--length", "32"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight windows judge."""
    monkeypatch.setattr(reaching, "HELD_OUT", 256)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with channels, blocks and tokens to spare."""
    folder = tmp_path_factory.mktemp("model")
    config = tiny.config("llama")
    config.num_hidden_layers, config.intermediate_size, config.vocab_size = 8, 256, here.SIZE
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    made.save_pretrained(folder)
    here.tokenizer("byte level").save_pretrained(folder)
    return folder


def bytes_in(folder: Path) -> int:
    return source.find(str(folder)).size[0]


def weights(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in hashes(folder).items() if name.endswith(".safetensors")}


@pytest.mark.parametrize(
    ("recipe", "healed"),
    [
        ({"pattern": {"name": "vocabulary", "keep": 256}}, False),
        ({"method": "cfsp", "sparsity": 0.2}, True),
        ({"steps": [{"pattern": {"name": "vocabulary", "keep": 256}}, {"method": "cfsp"}]}, True),
    ],
)
def test_blocks_that_lost_nothing_are_not_reconstructed(recipe: dict[str, Any], healed: bool) -> None:
    found = reaching._healed({"name": "one", "recipe": recipe, "expected": 1.0})
    assert (found is not None) == healed


def test_a_target_is_reached_by_the_best_candidate_whose_recipe_gives_the_same_by_itself(
    model: Path, tmp_path: Path
) -> None:
    done = reach(str(model), "0.75x", TEXT, out=tmp_path / "out")
    planned = done.planned
    assert planned is not None
    found = {one["name"]: one for one in planned["candidates"]}
    *first, last = found
    assert set(first) == {"width", "depth and width", "vocabulary and depth"}
    assert last.removesuffix(", reconstructed") in first
    assert (
        bytes_in(tmp_path / "out") == done.totals["bytes_after"] == found[planned["chosen"] or ""]["reached"]
    )
    assert abs(done.totals["bytes_after"] / (0.75 * bytes_in(model)) - 1) <= 0.02
    assert planned["judged_by"] == "bits_per_byte"
    assert all((one["kl"] is None) == one["name"].startswith("vocabulary") for one in found.values())
    near = [one for one in found.values() if abs(one["reached"] / planned["goal"] - 1) <= 0.02]
    assert found[planned["chosen"] or ""] == min(near, key=lambda one: one["bits_per_byte"])
    assert read(tmp_path / "out") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not (tmp_path / "out" / ".unfinished").exists()
    assert f'"{tmp_path / "out"}"' in (done.reload or {})["line"]
    again = Recipe.parse(found[planned["chosen"] or ""]["recipe"])
    prune(model, again, out=tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "out")


def test_an_interrupted_run_resumes_with_the_candidate_that_it_was_at(model: Path, tmp_path: Path) -> None:
    whole = reach(str(model), "0.75x", TEXT, out=tmp_path / "whole")
    with interrupted(after=28):
        reach(str(model), "0.75x", TEXT, out=tmp_path / "cut")
    assert not (tmp_path / "cut" / "config.json").exists()
    with pytest.raises(RequestError, match="another target"):
        reach(str(model), "0.8x", TEXT, out=tmp_path / "cut", resume=True)
    again = reach(str(model), "0.75x", TEXT, out=tmp_path / "cut", resume=True)
    assert again.planned is not None and whole.planned is not None
    assert again.planned | {"seconds": 0.0} == whole.planned | {"seconds": 0.0}
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert reach(str(model), "0.75x", TEXT, out=tmp_path / "cut", resume=True).planned == again.planned


@torch.no_grad()
def test_a_text_that_cannot_be_read_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    for dataset in (tmp_path / "empty.txt", tmp_path / "absent.txt"):
        with pytest.raises(RequestError, match="calibration"):
            reach(str(model), "0.75x", TEXT | {"dataset": str(dataset)}, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_a_judge_finds_what_plain_transformers_finds(model: Path, tmp_path: Path) -> None:
    prune(model, method="wanda", calibration=TEXT, out=tmp_path / "out")
    windows = torch.randint(100, 400, (3, 24))
    where = resources("cpu", "float32", None, torch.float32, text=True)
    judge = Judge(opened(model, where, trust=False), here.tokenizer("byte level"), windows)
    found = judge.worth(tmp_path / "out")
    logits = [
        AutoModelForCausalLM.from_pretrained(path)(windows).logits for path in (model, tmp_path / "out")
    ]
    dense, pruned = (one[:, :-1].log_softmax(-1) for one in logits)
    kl = (dense.exp() * (dense - pruned)).sum(-1).mean()
    assert found.kl == pytest.approx(float(kl), rel=1e-4)
    nats = [-one.gather(-1, windows[:, 1:, None]).sum() for one in (dense, pruned)]
    assert found.bits_per_byte / judge.dense == pytest.approx(float(nats[1] / nats[0]), rel=1e-5)


def test_a_dry_run_shows_the_candidates_and_writes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, ["prune", str(model), "--target", "0.75x", *WORDS, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "width" in [one["name"] for one in found["candidates"]]
    assert found["chosen"] is None
    assert found == json.loads(json.dumps(plan(str(model), "0.75x", TEXT)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "5"], "target: '5' is no size"),
        (["--target", "0.01x"], "the nearest that this model reaches"),
        (["--target", "1.5x"], "already"),
        (["--target", "0.8x", "--method", "wanda"], "method: a target chooses"),
        (["--target", "0.8x", "--set", "sparsity=0.1"], "set: a target chooses"),
        (["--dry-run"], "dry_run"),
        (["--target", "0.8x", "--engine", "llama.cpp"], "engine: 0.8x is a size"),
        (["--target", "1.3x-decode", "--engine", "vllm"], "engine: 'vllm' is not known"),
        (["--engine", "llama.cpp"], "engine: it says where"),
    ],
)
def test_what_cannot_be_reached_is_refused_in_one_sentence(
    words: list[str],
    said: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, ["prune", str(model), *words, *WORDS, "--out", str(tmp_path / "out")]) == 2
    told: Any = capsys.readouterr().err.strip().splitlines()
    assert said in told[-1]
    assert not (tmp_path / "out").exists()


def test_a_speed_that_is_missed_is_tried_once_more_and_the_nearer_result_competes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device where channels save half of what they were to save, and all else what was expected."""
    monkeypatch.setattr(candidates, "MIXES", {name: candidates.MIXES[name] for name in ("width", "depth")})
    parts = Latencies(token_s=1.0, block=0.1, channels=0.08, row=0.2 / here.SIZE, protocol="none")
    monkeypatch.setattr(planner, "latencies", lambda *_: parts)
    tried: list[str] = []

    def speed(dense: Source, folder: Path, run: Run, target: Target) -> float:
        tried.append(folder.parent.name)
        shapes = {key: one.shape for key, one in source.find(str(folder)).tensors.items()}
        widths = [shape[0] for key, shape in shapes.items() if key.endswith("gate_proj.weight")]
        rows = shapes["model.embed_tokens.weight"][0]
        saved = 0.1 * (8 - len(widths)) + 0.2 * (1 - rows / here.SIZE)
        return 1 / (1 - saved - 0.04 * sum(1 - width / 256 for width in widths))

    monkeypatch.setattr(reaching, "speed", speed)
    done = reach(str(model), "1.15x-decode", TEXT, out=tmp_path / "out", trust_remote_code=True)
    planned = done.planned
    assert planned is not None
    found = {one["name"]: one for one in planned["candidates"]}
    width, depth = found["width"], found["depth"]
    assert width["reached"] == pytest.approx(planned["goal"], rel=0.03)
    assert 1 - width["expected"] == pytest.approx(2 * (1 - width["reached"]), rel=0.1)
    assert depth["reached"] == pytest.approx(depth["expected"])
    assert tried.count("candidate-0") == tried.count("candidate-0-again") == 1
    near = [one for one in found.values() if abs(planned["goal"] / one["reached"] - 1) <= 0.1]
    assert found[planned["chosen"] or ""] == min(near, key=lambda one: one["kl"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("refused", ["the first", "all"])
def test_a_result_that_the_engine_does_not_take_does_not_compete(
    refused: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Latencies(token_s=1.0, block=0.1, channels=0.08, row=0.0, protocol="none")
    monkeypatch.setattr(candidates, "MIXES", {name: candidates.MIXES[name] for name in ("width", "depth")})
    monkeypatch.setattr(planner, "latencies", lambda *_: parts)

    def speed(dense: Source, folder: Path, run: Run, target: Target) -> float:
        if refused == "all" or folder.parent.name == "candidate-0":
            raise RequestError("model", "no home for such sizes")
        return 1.25

    monkeypatch.setattr(reaching, "speed", speed)
    if refused == "all":
        with pytest.raises(RequestError, match="no candidate can be measured: model: no home for such sizes"):
            reach(str(model), "1.25x-decode", TEXT, out=tmp_path / "out")
        return
    planned = reach(str(model), "1.25x-decode", TEXT, out=tmp_path / "out").planned
    assert planned is not None and planned["chosen"] != "width"
    assert planned["candidates"][0]["refused"] == "model: no home for such sizes"
    assert planned["landed"]
    assert "reached" not in planned["candidates"][0]


def test_where_nothing_lands_the_nearest_is_kept_and_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = Latencies(token_s=1.0, block=0.1, channels=0.08, row=0.0, protocol="none")
    monkeypatch.setattr(candidates, "MIXES", {name: candidates.MIXES[name] for name in ("width", "depth")})
    monkeypatch.setattr(planner, "latencies", lambda *_: parts)
    fast = {"candidate-0": 0.9, "candidate-1": 1.05}  # neither gains anything to be solved again by
    monkeypatch.setattr(reaching, "speed", lambda dense, folder, *_: fast.get(folder.parent.name, 0.8))
    words = ["prune", str(model), "--target", "1.25x-decode", *WORDS, "--out", str(tmp_path / "out")]
    assert main(monkeypatch, words) == 0
    told = capsys.readouterr().out
    assert "1.250x asked, 1.050x reached" in told
    assert "depth, the nearest, since none lands there" in told
