"""Text that the model generates itself is drawn from its distribution, and resumed where it was cut off."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmprune.run.asked import request
from llmprune.run.job import checkpoint_job
from llmprune.text.sources import for_calibration
from llmprune.text.sources.base import Amount
from llmprune.text.sources.self import SelfGenerated, batch_size
from tests import tiny
from tests.text.sources.lent import access


def test_a_text_is_resumed_where_it_was_cut_off(checkpoints: tiny.Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama"))
    opened, size = [], batch_size(12)

    def open_model() -> torch.nn.Module:
        opened.append(1)
        return model

    def written(samples: int, seed: int = 3, temperature: float = 1.0, **identity: str) -> torch.Tensor:
        lent = access(whole_model=open_model, cache_key=lambda: identity)
        return SelfGenerated("self", temperature).windows(Amount(samples, 12, seed), lent).tokens

    first = written(size)
    assert first.shape == (size, 12) and len(opened) == 1
    more = written(size + 3)
    assert torch.equal(more[:size], first) and len(opened) == 2
    assert torch.equal(written(size), first) and len(opened) == 2
    assert not torch.equal(written(size, seed=4), first)
    assert len(opened) == 3
    written(1, weights="others")
    assert len(opened) == 4
    written(1, temperature=0.5)
    assert len(opened) == 5


def test_a_text_is_drawn_from_the_models_own_distribution(checkpoints: tiny.Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    lent = access(whole_model=lambda: model, cache_key=lambda: None)
    drawn = for_calibration("self").windows(Amount(1024, 1, 0), lent).tokens.flatten()
    with torch.no_grad():
        start = torch.tensor([[model.config.bos_token_id or 0]])
        expected = model(start).logits[0, -1].softmax(-1)
    share = drawn.bincount(minlength=len(expected)) / len(drawn)
    assert float((share - expected).abs().sum()) < 2.5 * (len(expected) / len(drawn)) ** 0.5


@pytest.mark.parametrize(("dataset", "width"), [("self", 4), ("synthetic", 0)])
def test_the_plan_counts_a_model_that_writes(checkpoints: tiny.Checkpoints, dataset: str, width: int) -> None:
    asked = {"method": "wanda", "calibration": {"dataset": dataset, "samples": 2, "length": 16}}
    plan = checkpoint_job(str(checkpoints("llama")), *request(asked, {})).plan
    assert plan.generating_bytes == width * plan.parameters
    assert ("has generated them" in dict(plan.rows())["calibration"]) == (width > 0)
