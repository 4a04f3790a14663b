"""`best` takes the candidate whose pruned model is closest to the dense one on held-out windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmprune import prune
from llmprune.allocation.base import Problem
from llmprune.allocation.best import Best
from llmprune.checkpoint.store import Store
from llmprune.errors import RequestError
from llmprune.methods.flap import Flap
from llmprune.methods.sparsegpt import Sparsegpt
from llmprune.methods.wanda import Wanda
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.units import WholeUnits
from llmprune.model.widths import allowed
from llmprune.patterns.units import Units
from llmprune.recipe import Recipe
from llmprune.repair.affine import Affine
from llmprune.run.asked import Run
from llmprune.run.job import checkpoint_job
from tests import tiny
from tests.resume.interrupted import pruned_twice
from tests.test_families import load
from tests.test_models_in_memory import half_on_cpu, half_on_disk, stored

TOKENS = torch.randint(3, tiny.VOCABULARY, (16, 24), generator=torch.Generator().manual_seed(4))
REST, HELD_OUT = TOKENS[:14], TOKENS[14:]
UNITS = {"name": "units", "multiple": 8}
EARLY, LATE = {"name": "ramp", "rise": -0.4}, {"name": "ramp", "rise": 0.4}
CASES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "magnitude": ({"method": "magnitude", "sparsity": 0.6}, [EARLY, LATE, "erk"]),
    "wanda, dense": ({"method": "wanda", "sparsity": 0.6}, [EARLY, "owl", "global"]),
    "wanda, block": ({"method": "wanda", "propagation": "block"}, [LATE, "erk"]),
    "sparsegpt, layer": ({"method": "sparsegpt", "sparsity": 0.7}, [EARLY, LATE]),
    "flap": ({"method": "flap", "sparsity": 0.3, "pattern": UNITS}, [LATE, "global_threshold"]),
    "wanda, units, affine": (
        {"method": "wanda", "sparsity": 0.3, "pattern": UNITS, "repair": "affine", "propagation": "layer"},
        [EARLY, "block_influence"],
    ),
}


pytestmark = pytest.mark.usefixtures("check_in_process")


@torch.no_grad()
def log_probabilities(model: PreTrainedModel) -> Tensor:
    return model(HELD_OUT, use_cache=False).logits[:, :-1].double().log_softmax(-1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_lowest_divergence_wins_as_pruning_by_hand_measures_it(
    case: tuple[dict[str, Any], list[Any]], checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    asked, candidates = case
    folder = checkpoints("llama")
    dense = log_probabilities(load(folder))
    measured, budgets = [], []
    for candidate in ["uniform", *candidates]:
        model = load(folder)
        if asked.get("pattern") == UNITS:
            alone = {**asked, "layout": "per_layer", "allocation": candidate}
        else:  # the pattern that the method competes by, whatever the candidate's own is
            alone = {**asked, "pattern": Recipe.parse(asked).pattern.resolved(), "allocation": candidate}
        report = prune(model, alone, tokens=REST)
        budgets.append({site.name: site.asked for site in report.sites})
        measured.append(float((dense.exp() * (dense - log_probabilities(model))).sum(-1).mean()))
    best = {**asked, "allocation": {"name": "best", "candidates": candidates}}
    report = prune(folder, best, tokens=TOKENS, out=tmp_path / "out")
    assert report.budgets is not None
    assert [one["kl"] for one in report.budgets] == [pytest.approx(kl, rel=1e-3) for kl in measured]
    winner = measured.index(min(measured))
    assert {site.name: site.asked for site in report.sites} == pytest.approx(budgets[winner])
    assert len({round(kl, 6) for kl in measured}) == len(measured), "the candidates differ"


def test_a_resumed_run_keeps_the_choice_and_what_it_was_chosen_from(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    asked = {
        "method": "wanda",
        "sparsity": 0.6,
        "allocation": "best",
        "calibration": {"samples": 8, "length": 32},
    }
    report = pruned_twice(checkpoints("llama"), asked, tmp_path)
    again = prune(checkpoints("llama"), asked, out=tmp_path / "again", resume=True)
    assert again.budgets == report.budgets
    assert report.budgets is not None
    names = [one["allocation"]["name"] for one in report.budgets]
    assert names == ["uniform", "owl", "ramp", "ramp", "ramp"]


def test_a_model_in_memory_gets_the_same_weights_as_its_checkpoint(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("gpt2")
    asked = {"method": "wanda", "sparsity": 0.6, "allocation": {"name": "best", "candidates": [EARLY, LATE]}}
    written = prune(folder, asked, tokens=TOKENS, out=tmp_path / "out")
    model = load(folder)
    assert prune(model, asked, tokens=TOKENS).budgets == written.budgets
    pruned = load(tmp_path / "out").state_dict()
    assert all(torch.equal(pruned[key], tensor) for key, tensor in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("place", [half_on_cpu, half_on_disk], ids=lambda place: place.__name__)
def test_trials_leave_no_trace_in_offloaded_weights(
    place: Any, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    asked = {"method": "wanda", "sparsity": 0.6, "allocation": {"name": "best", "candidates": [LATE]}}
    alone, offloaded = load(checkpoints("llama")), place(checkpoints("llama"), tmp_path)
    prune(alone, asked, tokens=TOKENS)
    prune(offloaded, asked, tokens=TOKENS)
    assert all(torch.equal(stored(offloaded)[name], weight) for name, weight in stored(alone).items())


@torch.no_grad()
def test_trials_take_back_weights_and_biases() -> None:
    model = tiny.model("llama")
    anatomy = Anatomy(model, WholeUnits(Units()))
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counts = allowed(anatomy, 8, lambda site, n: True)
    batches = list(TOKENS.split(4))
    problem = Problem(Store(anatomy), batches, batches[0][:1], Flap(), 0.3, Units(), Affine(), allowed=counts)
    found = Best().allocate(problem)
    assert [one["allocation"]["name"] for one in found.tried][:3] == [
        "uniform",
        "global_threshold",
        "block_influence",
    ]
    after = model.state_dict()
    assert after.keys() == dense.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in dense.items())


def test_the_usual_candidates_suit_the_method_and_the_sparsity() -> None:
    def usual(method: Any, shares: str, sparsity: float) -> list[Any]:
        return [
            c if isinstance(c, str) else c["rise"]
            for c in Best().settled(method, shares, sparsity).candidates
        ]

    assert usual(Wanda(), "weights", 0.7) == ["owl", 0.1, 0.2, 0.4]
    assert usual(Wanda(), "weights", 0.1) == ["owl", 0.1]
    assert usual(Flap(), "units", 0.2) == ["global_threshold", "block_influence", 0.1, 0.2]
    assert usual(Sparsegpt(), "units", 0.2) == ["block_influence", 0.1, 0.2]


def test_a_recipe_holds_its_usual_candidates() -> None:
    recipe = Recipe.parse({"method": "flap", "sparsity": 0.2, "allocation": "best"})
    assert recipe.resolved()["allocation"]["candidates"][0] == "global_threshold"
    assert Recipe.parse(recipe.resolved()) == recipe


REFUSED = {
    "no candidate": ({"candidates": []}, {}, "^allocation.candidates: none was named"),
    "itself": ({"candidates": ["best"]}, {}, "^allocation.candidates: best was named"),
    "no allocation": ({"candidates": ["nope"]}, {}, "^allocation.candidates: no allocator is called 'nope'"),
    "no option": ({"candidates": [{"name": "ramp", "slope": 1}]}, {}, "^allocation.candidates.slope: "),
    "of blocks": ({"candidates": ["sleb"]}, {}, "^allocation: sleb cannot share out weights"),
    "of scores": ({"candidates": ["global"]}, {"method": "sparsegpt"}, "^allocation: global compares scores"),
    "even": ({}, {"pattern": "2:4"}, "^allocation: best gives sites different sparsities"),
    "out of reach": ({"candidates": [{"name": "ramp", "rise": 1.5}]}, {}, "^allocation.rise: 1.5 was asked"),
    "one window": (
        {},
        {"calibration": {"samples": 1, "length": 32}},
        "^calibration.samples: 1 was asked, and this allocation holds windows out",
    ),
}


@pytest.mark.parametrize(("options", "more", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_refused_and_nothing_is_written(
    options: dict[str, Any], more: dict[str, Any], said: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    text = {"samples": 4, "length": 32}
    asked = {"method": "wanda", "calibration": text, "allocation": {"name": "best", **options}, **more}
    with pytest.raises(RequestError, match=said):
        prune(checkpoints("llama"), asked, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_plan_counts_passes_trials_and_the_memory_of_one_more_block(
    checkpoints: tiny.Checkpoints,
) -> None:
    asked = {"method": "wanda", "sparsity": 0.7, "calibration": {"samples": 16, "length": 32}}
    plain, best = (
        checkpoint_job(str(checkpoints("llama")), Recipe.parse({**asked, "allocation": name}), Run()).plan
        for name in ("owl", "best")
    )
    assert (best.allocation_passes, best.allocation_trials) == (2, 5)
    held = 16 * 32 // 8 * 32 * 4  # an eighth of the tokens, 32 float32 each
    assert best.needed_bytes - plain.needed_bytes == best.block_bytes + held
    said = "and 2 for the budgets, and 5 times as much to try budgets"
    assert said in dict(best.rows())["calibration"]


def test_the_terminal_shows_every_candidate(
    checkpoints: tiny.Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"method": "wanda", "sparsity": 0.6, "allocation": {"name": "best", "candidates": [LATE]}}
    report = prune(checkpoints("llama"), asked, tokens=TOKENS, out=tmp_path / "out")
    assert report.budgets is not None
    shown = capsys.readouterr().err
    for one, name in zip(report.budgets, ["uniform", "ramp, rise 0.4"], strict=True):
        assert (
            f"{name}: {one['kl']:.4f} nats of KL divergence to the dense model on held-out windows" in shown
        )
    best = min(
        zip(report.budgets, ["uniform", "ramp, rise 0.4"], strict=True), key=lambda pair: pair[0]["kl"]
    )
    assert f"| best ({best[1]}), none |" in (tmp_path / "out" / "README.md").read_text()
