"""A draft's acceptance is its definition, and that of transformers' assisted generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmprune_eval import draft
from llmprune_eval.runner import Load
from transformers import AutoModelForCausalLM

from llmprune import prune
from tests import tiny
from tests.conftest import SHARED
from tests.program import run

pytestmark = pytest.mark.usefixtures("check_in_process")

STORIES = SHARED / "models" / "stories260K"


@pytest.mark.parametrize("cost", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("guesses", [1, 4])
def test_speed_is_that_of_a_simulation(acceptance: float, guesses: int, cost: float) -> None:
    lots = torch.rand(20_000, guesses, generator=torch.Generator().manual_seed(0))
    taken = (lots < acceptance).long().cumprod(1).sum(1) + 1
    simulated = float(taken.float().mean()) / (guesses * cost + 1)
    assert draft.speed(acceptance, guesses, cost) == pytest.approx(simulated, rel=0.02)


@torch.no_grad()
def test_the_interval_of_the_speed_is_that_of_both_ends() -> None:
    low, high = draft._between([0.6, 0.8], 4, [0.2, 0.3])
    assert low == draft.speed(0.6, 4, 0.3) < draft.speed(0.7, 4, 0.25) < draft.speed(0.8, 4, 0.2) == high
    assert draft._between(None, 4, [0.2, 0.3]) is draft._between([0.6, 0.8], 4, None) is None


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/models")
def test_assisted_generation_takes_as_many_guesses(tmp_path: Path) -> None:
    prune(STORIES, {"method": "magnitude", "sparsity": 0.2}, out=tmp_path / "out")
    dense, small = (AutoModelForCausalLM.from_pretrained(f).eval() for f in (STORIES, tmp_path / "out"))
    guesses, shares, measured = 3, [], []
    for seed in range(4):
        lots = torch.Generator().manual_seed(seed)
        asked = torch.randint(3, 500, (1, 6), generator=lots)
        how: dict[str, Any] = {"attention_mask": torch.ones_like(asked), "do_sample": False}
        how |= {"max_new_tokens": 40, "min_new_tokens": 40}
        alone = dense.generate(asked, **how)
        passes = []
        handle = dense.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        small.generation_config.num_assistant_tokens = guesses
        small.generation_config.num_assistant_tokens_schedule = "constant"
        small.generation_config.assistant_confidence_threshold = 0.0
        helped = dense.generate(asked, assistant_model=small, **how)
        handle.remove()
        assert torch.equal(alone, helped)
        ids = alone[0]
        shares.append(draft.acceptance(dense, small, ids, asked.shape[1] - 1, drawn=False))
        alike = dense(ids[None]).logits[0].argmax(-1) == small(ids[None]).logits[0].argmax(-1)
        measured.append((_taken(alike[asked.shape[1] - 1 : -1].tolist(), guesses), len(passes)))
    # The passes are those that the predicted guesses give, text by text.
    assert [ours for ours, _ in measured] == [theirs for _, theirs in measured]
    assert 0.05 < sum(shares) / len(shares) < 1


def _taken(alike: list[bool], guesses: int) -> int:
    """Passes of the dense model, given where the draft's choice is its own."""
    place = passes = 0
    while place < len(alike):
        taken = 0
        while taken < guesses and place + taken < len(alike) and alike[place + taken]:
            taken += 1
        place, passes = place + taken + 1, passes + 1
    return passes


@torch.no_grad()
def test_drawn_text_is_taken_by_the_smaller_probability(checkpoints: tiny.Checkpoints) -> None:
    dense, other = (AutoModelForCausalLM.from_pretrained(checkpoints(f)).eval() for f in ("llama", "mistral"))
    ids = torch.randint(3, 90, (20,), generator=torch.Generator().manual_seed(0))
    p, q = (model(ids[None]).logits[0, 5:-1].softmax(-1) for model in (dense, other))
    expected = float(torch.minimum(p, q).sum(-1).mean())
    assert draft.acceptance(dense, other, ids, 5, drawn=True) == pytest.approx(expected, abs=1e-5)
    assert draft.acceptance(dense, dense, ids, 0, drawn=True) == pytest.approx(1.0, abs=1e-5)
    wider = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    wider.resize_token_embeddings(tiny.VOCABULARY + 8)
    assert draft.acceptance(dense, wider, ids, 5, drawn=False) == 1.0


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/models")
@pytest.mark.usefixtures("models_forked")
def test_it_is_said_whether_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "TEXTS", 3)
    monkeypatch.setattr(draft, "LOAD", Load(batch=1, prompt=8, new_tokens=4, repeats=2, seconds=1.0))
    found = draft.measure(str(STORIES), str(STORIES), {"device": "cpu"})
    assert found["greedy"]["acceptance"] > 0.99 and found["drawn"]["acceptance"] == pytest.approx(1, abs=1e-4)
    assert 0.2 < found["cost"] < 5  # a draft that is its model is about as slow
    slow = found | {"cost": 0.9, "greedy": found["greedy"] | {"acceptance": 0.5, "speed": 0.9}}
    greedy, drawn = (said for _, said in draft.rows(slow))
    assert "does not pay, it takes more than 90.0 %" in greedy.replace("90.0%", "90.0 %")
    assert "x as fast with" in drawn or "does not pay" in drawn


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/models")
def test_a_draft_of_another_model_is_refused(checkpoints: tiny.Checkpoints) -> None:
    done = run("eval", STORIES, "--draft-for", checkpoints("llama"))
    assert done.returncode == 2 and "has other tokens than" in done.stderr
