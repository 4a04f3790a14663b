"""Kept scores give the bytes that measuring again gives, and are refused where they are of something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmprune import prune, score
from llmprune.errors import JobError, RequestError
from llmprune.tensors.contributions import Contributions
from llmprune.tensors.held_out import HeldOutGram
from llmprune.tensors.several import joined
from llmprune.tensors.statistics import CentredGram, Gram, InputMoments, InputNorm, Statistic
from llmprune.tensors.stored import restore, tensors_of
from tests import tiny
from tests.program import run
from tests.resume.children import hashes
from tests.resume.interrupted import interrupted

pytestmark = pytest.mark.usefixtures("check_in_process")
TEXT: dict[str, Any] = {"calibration": {"samples": 6, "length": 24}}
UNITS = {"name": "units", "multiple": 4}
WAYS: dict[str, dict[str, Any]] = {
    "wanda": {"method": "wanda"},
    "sparsegpt": {"method": "sparsegpt"},
    "flap": {"method": "flap", "pattern": UNITS},
    "cfsp, affine": {"method": "cfsp", "pattern": UNITS, "repair": "affine"},
    "obs": {"method": "obs", "pattern": UNITS},
    "wanda of units": {"method": "wanda", "pattern": UNITS, "repair": "least_squares"},
}
LATER: dict[str, dict[str, Any]] = {
    "2:4": {"pattern": "2:4"},
    "global": {"allocation": "global"},
    "owl": {"allocation": "owl"},
}
WANDA = {"method": "wanda", **TEXT}


def weights(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in hashes(folder).items() if name.endswith(".safetensors")}


@pytest.mark.parametrize(
    "kind",
    [InputNorm, InputMoments, Gram, CentredGram, HeldOutGram, joined(InputNorm, HeldOutGram), Contributions],
    ids=lambda kind: kind.__name__,
)
def test_a_statistic_comes_back_from_its_tensors(kind: type[Statistic]) -> None:
    seen, back = kind(6), kind(6)
    for _ in range(8):
        seen.update(torch.randn(5, 12 if kind is Contributions else 6))
    restore(back, tensors_of(seen))
    assert back.tokens == seen.tokens == 40
    again = tensors_of(back)
    assert all(torch.equal(again[name], held) for name, held in tensors_of(seen).items())


@pytest.mark.parametrize("name", WAYS)
def test_two_sparsities_of_one_score_are_what_direct_runs_give(
    name: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    model = checkpoints("llama")
    score(model, TEXT | WAYS[name], out=tmp_path / "scores")
    for share in (0.25, 0.4):
        direct = prune(
            model, TEXT | WAYS[name], propagation="dense", sparsity=share, out=tmp_path / f"d{share}"
        )
        kept = prune(model, scores=tmp_path / "scores", sparsity=share, out=tmp_path / f"k{share}")
        assert weights(tmp_path / f"k{share}") == weights(tmp_path / f"d{share}") != {}
        assert kept.recipe == direct.recipe
        assert kept.calibration == direct.calibration
        assert [site.error for site in kept.sites] == [site.error for site in direct.sites]


@pytest.mark.parametrize("name", LATER)
def test_what_is_asked_later_is_as_if_it_had_been_asked_at_once(
    name: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    model = checkpoints("llama")
    score(model, WANDA, out=tmp_path / "scores")
    prune(model, scores=tmp_path / "scores", out=tmp_path / "kept", **LATER[name])
    prune(model, WANDA, propagation="dense", out=tmp_path / "direct", **LATER[name])
    assert weights(tmp_path / "kept") == weights(tmp_path / "direct")


def test_experts_are_scored_as_well(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    model, asked = checkpoints("mixtral"), {"method": "reap", **TEXT}
    score(model, asked, out=tmp_path / "scores")
    prune(model, scores=tmp_path / "scores", sparsity=0.25, out=tmp_path / "kept")
    prune(model, asked, propagation="dense", sparsity=0.25, out=tmp_path / "direct")
    assert weights(tmp_path / "kept") == weights(tmp_path / "direct")


def test_layers_that_read_the_same_tensor_share_a_statistic_on_disk(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    record = score(checkpoints("llama"), WANDA, out=tmp_path / "scores")
    first = load_file(tmp_path / "scores" / "scores-00001-of-00003.safetensors")
    measured = {name.rpartition(":")[0] for name in first if name.endswith(":tokens")}
    layers = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    assert measured == {f"model.layers.0.{layer}" for layer in layers}
    assert record.statistics == ["InputNorm"]
    assert record.bytes == sum(file.stat().st_size for file in (tmp_path / "scores").glob("*.safetensors"))


@pytest.mark.parametrize("cut", [1, 2])
def test_an_interrupted_score_resumes_to_the_same(
    cut: int, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    score(checkpoints("llama"), WANDA, out=tmp_path / "whole")
    with interrupted(after=cut):
        score(checkpoints("llama"), WANDA, out=tmp_path / "cut")
    with pytest.raises(RequestError, match="with --resume"):
        prune(checkpoints("llama"), scores=tmp_path / "cut", out=tmp_path / "out")
    score(checkpoints("llama"), WANDA, out=tmp_path / "cut", resume=True)
    for file in (tmp_path / "whole").glob("*.safetensors"):
        theirs = load_file(tmp_path / "cut" / file.name)
        ours = load_file(file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "facts")


@pytest.fixture
def scored(checkpoints: tiny.Checkpoints, tmp_path: Path) -> Path:
    score(checkpoints("llama"), WANDA, out=tmp_path / "scores")
    return tmp_path / "scores"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "sparsegpt"}, "another method"),
        ({"calibration": {"samples": 5, "length": 24}}, "another text"),
        ({"pattern": UNITS}, "another kind of site"),
        ({"repair": "refit"}, "Gram is needed"),
        ({"propagation": "layer"}, "use dense"),
        ({"allocation": "best"}, "use uniform"),
        ({"steps": [{"sparsity": 0.2}, {"sparsity": 0.3}]}, "steps"),
        ({"tokens": torch.zeros(2, 8, dtype=torch.int64)}, "tokens"),
    ],
)
def test_scores_that_do_not_serve_are_refused(
    asked: dict[str, Any], said: str, scored: Path, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=said):
        prune(checkpoints("llama"), scores=scored, out=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_scores_of_another_model_are_refused(
    scored: Path, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="another model"):
        prune(checkpoints("mistral"), scores=scored, out=tmp_path / "out")
    with pytest.raises(RequestError, match=r"holds no scores\.json"):
        prune(checkpoints("llama"), scores=checkpoints("llama"), out=tmp_path / "out")


def test_damaged_scores_are_named(scored: Path, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    file = scored / "scores-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(JobError, match="scores-00002"):
        prune(checkpoints("llama"), scores=scored, out=tmp_path / "out")
    (scored / "scores.json").write_text("{")
    with pytest.raises(RequestError, match="score anew"):
        prune(checkpoints("llama"), scores=scored, out=tmp_path / "other")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "magnitude"}, "looks at no text"),
        ({"propagation": "layer"}, "leave it out"),
        ({"steps": [{"method": "wanda"}, {"method": "wanda"}]}, "score once"),
    ],
)
def test_nothing_is_scored_that_could_not_be_used(
    asked: dict[str, Any], said: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=said):
        score(checkpoints("llama"), TEXT | asked, out=tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_one_command_scores_and_another_prunes(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    model, kept, out = (str(path) for path in (checkpoints("llama"), tmp_path / "kept", tmp_path / "out"))
    asked = ["--method", "wanda", "--samples", "4", "--length", "16"]
    done = run("score", model, *asked, "--out", kept, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["statistics"] == ["InputNorm"]
    assert run("score", model, *asked, "--out", kept).returncode == 2
    again = run("score", model, *asked, "--out", kept, "--resume")
    assert "finished already" in again.stderr
    done = run("prune", model, "--scores", kept, "--sparsity", "0.3", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recipe"]["sparsity"] == 0.3
    refused = run("prune", model, "--scores", kept, "--method", "sparsegpt", "--out", f"{out}2")
    assert refused.returncode == 2
    assert "another method" in refused.stderr
