"""A second method that learns is one file: it prunes, resumes and reuses with nothing else edited."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.recipe import Recipe
from llmprune.run import job
from llmprune.run.asked import Run
from llmprune.run.learned import FILE
from tests import tiny
from tests.resume.interrupted import interrupted

pytestmark = pytest.mark.usefixtures("check_in_process")

METHOD = "learners_of_a_test.tempered"
SOURCE = '''
"""Wanda with an exponent of the input norms that is learned for layers of each shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmprune.methods.base import Examples, Learned, Method, Weights
from llmprune.tensors.statistics import InputNorm

PASSES = []


@dataclass(frozen=True)
class Tempered(Method[InputNorm]):
    needs: ClassVar = InputNorm
    propagation: ClassVar = "dense"

    policy: str | None = None

    @property
    def training_passes(self) -> int:
        return 0 if self.policy else 1

    @property
    def state_file(self) -> str | None:
        return self.policy

    def learned(self, examples: Examples, earlier: Learned | None) -> Method[InputNorm]:
        if earlier is None:
            return _exponents(examples)
        if not any(key.startswith("exponent.") for key in earlier.tensors):
            raise KeyError("exponent")
        return _Exponents(earlier.tensors, earlier.facts | ({"file": earlier.file} if earlier.file else {}))


@dataclass(frozen=True)
class _Exponents(Method[InputNorm]):
    exponents: dict[str, Tensor]
    about: dict[str, Any]

    needs: ClassVar = InputNorm

    def score(self, weights: Weights, statistic: InputNorm) -> Tensor:
        return weights.matrix.abs().float() * statistic.value.float() ** self.exponents[_key(weights)]

    def state(self) -> dict[str, Tensor]:
        return self.exponents

    def facts(self) -> dict[str, Any]:
        return self.about


def _key(weights: Weights) -> str:
    return "exponent." + "x".join(map(str, weights.matrix.shape))


def _exponents(examples: Examples) -> _Exponents:
    spreads: dict[str, list[float]] = {}
    PASSES.append(1)
    for weights, statistic in examples(InputNorm):
        spreads.setdefault(_key(weights), []).append(float(statistic.value.log().std()))
    learned = {key: torch.tensor(1 / (1 + sum(s) / len(s))) for key, s in spreads.items()}
    return _Exponents(learned, {"sites": {key: len(s) for key, s in spreads.items()}})
'''


@pytest.fixture
def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The method's file on the path; an entry for each forward pass it learned in."""
    package, name = METHOD.split(".")
    (tmp_path / "path" / package).mkdir(parents=True)
    (tmp_path / "path" / package / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "path")
    yield importlib.import_module(METHOD).PASSES
    for module in (METHOD, package):
        sys.modules.pop(module, None)


def asked(sparsity: float = 0.5, **method: Any) -> dict[str, Any]:
    text = {"samples": 2, "length": 16}
    return {"method": {"name": METHOD, **method}, "sparsity": sparsity, "calibration": text}


def require_same(out: Path, reference: Path) -> None:
    for file in reference.glob("*.safetensors"):
        assert (out / file.name).read_bytes() == file.read_bytes(), file.name


def test_it_learns_in_one_pass_and_keeps_what_it_learned(
    passes: list[int], checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    report = prune(checkpoints("llama"), asked(), out=tmp_path / "out")
    assert len(passes) == 1
    assert report.totals["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert report.learned == json.loads((tmp_path / "out" / "policy.json").read_text())
    exponents = load_file(tmp_path / "out" / FILE)
    assert exponents.keys() == report.learned["sites"].keys()
    assert all(0 < float(exponent) < 1 for exponent in exponents.values())
    prune(checkpoints("llama"), asked() | {"method": "wanda"}, out=tmp_path / "wanda")
    shard = "model-00001-of-00004.safetensors"
    assert (tmp_path / "out" / shard).read_bytes() != (tmp_path / "wanda" / shard).read_bytes()


def test_the_plan_tells_what_it_takes_to_learn(passes: list[int], checkpoints: tiny.Checkpoints) -> None:
    todo = job.checkpoint_job(str(checkpoints("llama")), Recipe.parse(asked()), Run())
    assert "and 1 to train the method" in dict(todo.plan.rows())["calibration"]


def test_a_resumed_run_takes_what_it_learned_from_its_own_folder(
    passes: list[int], checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(checkpoints("llama"), asked(), out=tmp_path / "whole")
    with interrupted(after=1):
        prune(checkpoints("llama"), asked(), out=tmp_path / "cut")
    assert len(passes) == 2
    report = prune(checkpoints("llama"), asked(), out=tmp_path / "cut", resume=True)
    assert len(passes) == 2
    assert report.learned is not None and "file" not in report.learned
    require_same(tmp_path / "cut", tmp_path / "whole")


def test_what_it_learned_serves_another_sparsity(
    passes: list[int], checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    first = prune(checkpoints("llama"), asked(0.5), out=tmp_path / "first")
    prune(checkpoints("llama"), asked(0.25), out=tmp_path / "learned")
    policy = str(tmp_path / "first" / FILE)
    again = prune(checkpoints("llama"), asked(0.25, policy=policy), out=tmp_path / "again")
    assert len(passes) == 2
    assert again.learned == (first.learned or {}) | {"file": policy}
    require_same(tmp_path / "again", tmp_path / "learned")


def test_the_state_of_another_method_is_refused_before_a_text_is_prepared(
    passes: list[int], checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"name": "prunenet", "passes": 1, "steps": 1, "draws": 2}
    units = {"name": "units", "parts": "ffn", "multiple": 8}
    prune(checkpoints("llama"), asked() | {"method": quick, "pattern": units}, out=tmp_path / "other")
    monkeypatch.setattr("llmprune.pruning.windows", lambda *_: pytest.fail("a text was prepared"))
    with pytest.raises(RequestError, match=rf"^policy: .* no policy that `{METHOD}` wrote \(KeyError\)"):
        prune(checkpoints("llama"), asked(policy=str(tmp_path / "other" / FILE)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
