"""Several steps of one recipe give what the same steps give as runs of their own, and resume anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.recipe import Recipe
from tests import tiny
from tests.resume.children import hashes
from tests.resume.interrupted import interrupted
from tests.test_families import PROBE

TEXT = {"calibration": {"samples": 4, "length": 16}}
DEPTH: dict[str, Any] = {"pattern": {"name": "blocks", "remove": [1]}, "repair": "span"}
WIDTH: dict[str, Any] = {
    "method": "magnitude",
    "sparsity": 0.3,
    "pattern": {"name": "units", "multiple": 4},
}
MASK: dict[str, Any] = {"method": "wanda", "pattern": "2:4"}
STEPS = {**TEXT, "steps": [DEPTH, WIDTH, MASK]}


pytestmark = pytest.mark.usefixtures("check_in_process")


def test_steps_are_runs_one_after_the_other(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    report = prune(checkpoints("llama"), STEPS, out=tmp_path / "out")
    source = checkpoints("llama")
    for number, step in enumerate(STEPS["steps"]):
        prune(source, TEXT | step, out=tmp_path / str(number))
        source = tmp_path / str(number)
    weights = {name: digest for name, digest in hashes(source).items() if name.endswith(".safetensors")}
    assert weights and weights.items() <= hashes(tmp_path / "out").items()
    assert [step["recipe"]["method"]["name"] for step in report.steps or []] == ["whole", "magnitude"]
    assert report.recipe["method"]["name"] == "wanda"
    assert Recipe.parse(report.recipe).resolved() == report.recipe


@pytest.mark.parametrize("cut", [2, 4, 6])
def test_an_interrupted_step_resumes(cut: int, checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), STEPS, out=tmp_path / "whole")
    with interrupted(after=cut - 1):
        prune(checkpoints("llama"), STEPS, out=tmp_path / "cut")
    with pytest.raises(RequestError, match="--resume"):
        prune(checkpoints("llama"), STEPS, out=tmp_path / "cut")
    prune(checkpoints("llama"), STEPS, out=tmp_path / "cut", resume=True)
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")


@torch.no_grad()
def test_a_model_in_memory_takes_the_same_steps(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    live = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    prune(live, STEPS, tokenizer=tiny.tokenizer())
    prune(checkpoints("llama"), STEPS, out=tmp_path / "out")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(live(PROBE).logits, stored(PROBE).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "a list of recipes is needed"),
        ([WIDTH, {"method": "nothing"}], "nothing"),
        ([{"method": "wanda", "sparsity": 3}, WIDTH], "steps.1.sparsity"),
        ([{"pattern": {"name": "blocks", "remove": [9]}}, WIDTH], "steps.1.pattern.remove"),
        ([WIDTH, {"pattern": {"name": "blocks", "remove": [9]}}], "steps.2.pattern.remove"),
        ([DEPTH, {"pattern": {"name": "blocks", "remove": [1]}}], "steps.2.pattern.remove: block 1 is the"),
        ([DEPTH, WIDTH | {"layout": "squashed"}], "steps.2.layout"),
        ([DEPTH, WIDTH | {"model": "elsewhere"}], "steps.2.model"),
        ([{"pattern": {"name": "vocabulary", "keep": 64}}, {**MASK, "recovery": "refine"}], "one vocabulary"),
    ],
)
def test_a_wrong_step_is_named(
    steps: list[Any], said: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(RequestError) as caught:
        prune(checkpoints("llama"), {**TEXT, "steps": steps}, out=tmp_path / "out")
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_every_step_has_itself_is_not_asked_beside_them() -> None:
    with pytest.raises(RequestError, match="asked beside steps"):
        Recipe.parse({"sparsity": 0.4, "steps": [WIDTH, {"method": "wanda", "sparsity": 0.5}]})


def test_steps_inside_steps_are_steps() -> None:
    flat, nested = ({"steps": [DEPTH, WIDTH, MASK]}, {"steps": [DEPTH, {"steps": [WIDTH, MASK]}]})
    assert Recipe.parse(nested) == Recipe.parse(flat)


def test_a_recovery_beside_the_steps_comes_once_after_them() -> None:
    recipe = Recipe.parse({"recovery": "reconstruct", "steps": [DEPTH, WIDTH]})
    assert [step.recovery is not None for step in recipe.every_step] == [False, True]


def test_a_model_in_memory_is_left_alone_by_steps_that_it_cannot_take(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    live = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    vocabulary = {"pattern": {"name": "vocabulary", "keep": 64}}
    with pytest.raises(RequestError, match=r"steps\.2\.model"):
        prune(live, {**TEXT, "steps": [DEPTH, vocabulary]}, tokenizer=tiny.tokenizer())
    assert len(live.model.layers) == 3
    prune(live, {**TEXT, "steps": [DEPTH, MASK]}, tokenizer=tiny.tokenizer(), out=tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 2


def test_report_and_card_keep_every_step(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    report = prune(checkpoints("llama"), {**TEXT, "steps": [MASK, DEPTH]}, out=tmp_path / "out")
    blocks = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers
    zeros = sum(int((p == 0).sum()) for p in blocks.parameters() if p.ndim > 1)
    assert report.totals["zero_parameters"] == zeros > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| before, step 1 | wanda, 2:4, uniform, none: 50.00% of the pruned layers |" in card
    assert "Whole decoder blocks are gone" in card
