"""A condition on a figure fails a pipeline with its own exit code; one on what is not measured is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llmprune_eval import comparison, gate, tasks
from llmprune_eval.comparison import Scored
from llmprune_eval.tasks import Ask

from llmprune import prune
from llmprune.errors import RequestError
from tests import tiny
from tests.conftest import SHARED
from tests.program import run

pytestmark = pytest.mark.usefixtures("check_in_process")

MODEL, DATA = SHARED / "models" / "stories260K", SHARED / "data"
COMPARED: dict[str, Any] = {
    "name": "m",
    "perplexity": [{"perplexity": 20.0, "bits_per_byte": 1.1}],
    "agreement": [{"kl": 0.2, "top1": 0.8}],
    "tasks": {"piqa": {"metric": "acc", "acc": 0.6}},
    "comparison": {
        "perplexity": [{"bits_per_byte": 1.05}],
        "tasks": {"piqa": {"difference": -0.02}},
        "kept": {"all": {"value": 0.85}, "sharp": {"value": None}},
    },
}


@pytest.mark.parametrize(
    ("said", "fails"),
    [
        ("kl > 0.1", True),
        ("kl>0.2", False),
        ("kl >= 0.2", True),
        ("top1 < 0.9", True),
        ("kept < 0.8", False),
        ("kept <= 8.5e-1", True),
        ("piqa.difference < -0.01", True),
        ("piqa < 0.5", False),
        ("bits_per_byte.ratio > 1.04", True),
        ("sharp.kept < 0.1", True),  # it has no value
    ],
)
def test_conditions_are_what_they_say(said: str, fails: bool) -> None:
    dense = COMPARED | {"name": "dense"}
    failed = gate.failed([gate.parse(said)], {"baseline": dense, "model": COMPARED})
    assert bool(failed) is fails
    assert all(line.startswith(f"m: {said}") for line in failed)


@pytest.mark.parametrize(
    "said", ["kl", "kl = 0.1", "> 3", "kl > x", "kl > 1.2.3", "kl > 1e999", "", "kl > 0.1 and top1 < 1"]
)
def test_what_is_no_condition_is_refused(said: str) -> None:
    with pytest.raises(RequestError, match="is no condition"):
        gate.parse(said)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5))
def test_kept_is_its_definition(seed: int, choices: int) -> None:
    lots = np.random.default_rng(seed)
    tasks, above = [], np.zeros((2, 2))
    for number in range(2):
        dense, pruned = lots.random((2, 60)) < [[0.95], [0.8]]
        above[number] = pruned.mean() - 1 / choices, dense.mean() - 1 / choices
        scores = [{str(q): float(one) for q, one in enumerate(row)} for row in (dense, pruned)]
        tasks.append(Scored(*scores, 1 / choices))
    found = comparison.kept(tasks)
    assert found["value"] == pytest.approx(above[:, 0].sum() / above[:, 1].sum())
    low, high = found["interval"]
    assert low <= found["value"] <= high


def test_a_model_beside_itself_keeps_all_and_a_guessing_one_has_nothing_to_keep() -> None:
    good = {str(q): float(q % 10 > 0) for q in range(100)}
    alike = comparison.kept([Scored(good, good, 0.5)])
    assert alike["value"] == 1.0 and alike["interval"] == [1.0, 1.0]
    guesses = {str(q): float(q % 2) for q in range(100)}
    assert comparison.kept([Scored(guesses, good, 0.5)])["value"] is None


def test_the_command_exits_with_three(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), {"method": "magnitude", "sparsity": 0.9}, out=tmp_path / "out")
    words: list[object] = ["eval", tmp_path / "out", "--baseline", checkpoints("llama")]
    words += ["--perplexity", "builtin", "--length", 64, "--windows", 2, "--json"]
    done = run(*words, "--fail-if", "kl > 0.0001", "--fail-if", "top1 < 0")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)  # the figures are there all the same
    known = gate.names(["builtin"], None, talks=False, baseline=True)
    assert gate.figures(found["model"]).keys() == {*known}
    assert f"kl > 0.0001: kl is {found['model']['agreement'][0]['kl']:.4g}" in done.stderr
    assert "top1" not in done.stderr
    assert run(*words, "--fail-if", "kl > 100").returncode == 0
    refused = run(*words, "--fail-if", "sharp.kept < 0.9")
    assert refused.returncode == 2
    assert "sharp.kept is not among the figures of this evaluation; there are perplexity" in refused.stderr


@pytest.mark.skipif(
    not (MODEL.is_dir() and DATA.is_dir()), reason="needs ../shared/models and ../shared/data"
)
def test_sharp_says_what_is_kept() -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'llmprune[eval]'")
    words = ["eval", MODEL, "--baseline", MODEL, "--tasks", "sharp", "--limit", 10, "--data", DATA, "--json"]
    done = run(*words, "--fail-if", "sharp.kept < 0.999")
    found = json.loads(done.stdout)["model"]
    chance = {name: task["chance"] for name, task in found["tasks"].items()}
    assert chance["hellaswag"] == 0.25 and chance["piqa"] == 0.5 and 0.2 <= chance["arc_easy"] <= 0.34
    asked = Ask(tuple(tasks.tasks_of("sharp")))
    known = {*gate.names([], asked, talks=False, baseline=True)}
    shares = {name for name in known if name.endswith("kept")}  # without a value where dense only guesses
    assert gate.figures(found).keys() in (known, known - shares)
    kept = found["comparison"]["kept"]
    assert kept["sharp"] == kept["all"]
    # So small a model hardly beats chance on ten questions; where it does, it keeps all of it.
    assert kept["sharp"]["value"] in (None, 1.0)
    assert done.returncode == (0 if kept["sharp"]["value"] else 3)
