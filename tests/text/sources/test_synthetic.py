"""Tokens are drawn by rank, and redrawn by the model as often as asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from llmprune.checkpoint.store import Store
from llmprune.run.asked import request
from llmprune.run.job import checkpoint_job
from llmprune.text.sources import synthetic
from llmprune.text.sources.base import Amount
from llmprune.text.sources.synthetic import Synthetic
from tests import tiny
from tests.text.sources.lent import access


def test_tokens_are_drawn_by_their_rank_and_special_ones_never(checkpoints: tiny.Checkpoints) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints("llama"))
    often = synthetic.frequencies(tokenizer, tiny.VOCABULARY)
    merged = [i for i in range(len(tokenizer)) if often[i]]
    assert merged and not set(merged) & set(tokenizer.all_special_ids)
    assert all(len(tokenizer.convert_ids_to_tokens(i)) > 1 for i in merged)
    assert often[merged[0]] / often[merged[1]] == pytest.approx((2 + 2.7) / (1 + 2.7))

    def drawn() -> torch.Tensor:
        return Synthetic("synthetic").windows(Amount(400, 32, 5), access(tokenizer=lambda: tokenizer)).tokens

    found = drawn()
    assert found.shape == (400, 32)
    share = found.flatten().bincount(minlength=tiny.VOCABULARY) / found.numel()
    torch.testing.assert_close(share.double(), often / often.sum(), atol=0.02, rtol=0)
    assert torch.equal(found, drawn())


@torch.no_grad()
def test_what_was_drawn_is_kept_for_the_same_model_and_seed(checkpoints: tiny.Checkpoints) -> None:
    opened = []

    def open_store() -> Store:
        opened.append(1)
        return tiny.streamed(checkpoints("llama"))

    def drawn(identity: dict[str, str] | None, seed: int = 3, redraws: int = 1) -> torch.Tensor:
        lent = access(tokenizer=tiny.tokenizer, store=open_store, cache_key=lambda: identity)
        return Synthetic("synthetic", redraws).windows(Amount(2, 8, seed), lent).tokens

    first = drawn({})
    assert torch.equal(drawn({}), first) and len(opened) == 1
    assert torch.equal(drawn(None), first) and len(opened) == 2
    assert torch.equal(drawn({"weights": "others"}), first) and len(opened) == 3
    assert not torch.equal(drawn({}, seed=4), first) and len(opened) == 4
    drawn({}, redraws=2)
    assert len(opened) == 6


@pytest.mark.parametrize("redraws", [0, 2])
def test_the_plan_counts_the_redraws(checkpoints: tiny.Checkpoints, redraws: int) -> None:
    text = {"dataset": "synthetic", "samples": 2, "length": 16, "redraws": redraws}
    asked: dict[str, Any] = {"method": "wanda", "calibration": text}
    plan = checkpoint_job(str(checkpoints("llama")), *request(asked, {})).plan
    assert plan.drawing_passes == redraws
