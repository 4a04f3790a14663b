"""Calibration without any text: tokens drawn by rank, and text that the model writes itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune import calibration, prune, sampling, synthetic
from llmprune.calibration import Calibration
from llmprune.checkpoint import reload
from tests import tiny
from tests.test_families import check_here


@pytest.fixture(autouse=True)
def _check_in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reload, "check", check_here)
    monkeypatch.setenv("LLMPRUNE_CACHE", str(tmp_path / "cache"))

    def no_text(*_: object, **__: object) -> str:
        raise AssertionError("a text was read")

    monkeypatch.setattr(calibration, "read_text", no_text)


def test_tokens_are_drawn_by_their_rank_and_special_ones_never(checkpoints: tiny.Checkpoints) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints("llama"))
    often = synthetic.frequencies(tokenizer, tiny.VOCABULARY)
    merged = [i for i in range(len(tokenizer)) if often[i]]
    assert merged and not set(merged) & set(tokenizer.all_special_ids)
    assert all(len(tokenizer.convert_ids_to_tokens(i)) > 1 for i in merged)
    assert often[merged[0]] / often[merged[1]] == pytest.approx((2 + 2.7) / (1 + 2.7))
    asked = Calibration(dataset="synthetic", samples=400, length=32, seed=5)
    drawn = synthetic.windows(asked, 32, tokenizer, tiny.VOCABULARY).tokens
    assert drawn.shape == (400, 32)
    share = drawn.flatten().bincount(minlength=tiny.VOCABULARY) / drawn.numel()
    torch.testing.assert_close(share.double(), often / often.sum(), atol=0.02, rtol=0)
    assert torch.equal(drawn, synthetic.windows(asked, 32, tokenizer, tiny.VOCABULARY).tokens)


def test_a_model_goes_on_with_its_text_where_it_was_cut_off(checkpoints: tiny.Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama"))
    opened = []

    def open_model() -> torch.nn.Module:
        opened.append(1)
        return model

    def written(samples: int, seed: int = 3, **identity: str) -> torch.Tensor:
        asked = Calibration(dataset="self", samples=samples, seed=seed)
        return sampling.windows(asked, 12, open_model, identity).tokens

    first = written(sampling.BATCH)
    assert first.shape == (sampling.BATCH, 12) and len(opened) == 1
    more = written(sampling.BATCH + 3)
    assert torch.equal(more[: sampling.BATCH], first) and len(opened) == 2
    assert torch.equal(written(sampling.BATCH), first) and len(opened) == 2
    assert not torch.equal(written(sampling.BATCH, seed=4), first)
    assert len(opened) == 3
    written(1, weights="others")
    assert len(opened) == 4


def test_a_text_is_drawn_from_the_models_own_distribution(checkpoints: tiny.Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    asked = Calibration(dataset="self", samples=64 * sampling.BATCH, seed=0)
    drawn = sampling.windows(asked, 1, lambda: model, None).tokens.flatten()
    with torch.no_grad():
        start = torch.tensor([[model.config.bos_token_id or 0]])
        expected = model(start).logits[0, -1].softmax(-1)
    share = drawn.bincount(minlength=len(expected)) / len(drawn)
    assert float((share - expected).abs().sum()) < 2.5 * (len(expected) / len(drawn)) ** 0.5


@pytest.mark.parametrize("dataset", ["synthetic", "self"])
@pytest.mark.parametrize("method", ["flap", "cfsp", "wanda"])
def test_every_statistic_can_be_had_without_text(
    checkpoints: tiny.Checkpoints, tmp_path: Path, dataset: str, method: str
) -> None:
    recipe = {
        "method": method,
        "sparsity": 0.3,
        "pattern": {"name": "units", "multiple": 8},
        "repair": "affine",
        "calibration": {"dataset": dataset, "samples": 4, "length": 16},
    }
    report = prune(checkpoints("llama"), recipe, out=tmp_path / "out")
    assert report.calibration is not None and report.calibration["dataset"] == dataset
    assert report.totals["sparsity"] == pytest.approx(0.3, abs=0.05)
