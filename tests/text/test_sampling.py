"""Tokens that the model draws itself, and pruning that needs no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmprune import prune
from llmprune.text import sampling
from llmprune.text.sources.base import Documents
from tests import tiny

pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_a_token_is_drawn_anew_from_what_the_whole_model_expects_there(
    family: str, checkpoints: tiny.Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randint(0, tiny.VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(2))
    expected = AutoModelForCausalLM.from_pretrained(checkpoints(family)).eval()(tokens).logits[:, :-1]
    seen = []

    def certain(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    monkeypatch.setattr(sampling, "_draw", certain)
    monkeypatch.setattr(sampling.ops, "CHUNK", 7 * tiny.VOCABULARY)
    drawn = sampling.redraw(tiny.streamed(checkpoints(family)), tokens, 2, 0)
    torch.testing.assert_close(torch.cat(seen), expected.flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert max(map(len, seen)) <= 7
    assert torch.equal(drawn[:, :1], tokens[:, :1])
    assert torch.equal(drawn[:, 1:], torch.cat(seen).argmax(-1).reshape(5, 11))


@torch.no_grad()
def test_redraws_settle_on_a_text_from_its_beginning(checkpoints: tiny.Checkpoints) -> None:
    store = tiny.streamed(checkpoints("llama"))
    tokens = torch.randint(0, tiny.VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(2))
    met = [tokens]
    for _ in range(9):
        met.append(sampling.redraw(store, met[-1], 2, 7))
    for number, now in enumerate(met):
        assert torch.equal(now[:, : number + 1], met[-1][:, : number + 1])
    assert not torch.equal(met[1], met[-1])
    assert not torch.equal(sampling.redraw(store, tokens, 2, 8), met[1])


@pytest.mark.parametrize("kept", [1, 2, 5])
@torch.no_grad()
def test_the_beginning_is_kept_and_the_rest_follows_from_it(
    checkpoints: tiny.Checkpoints, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    tokens = torch.randint(0, tiny.VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(2))
    likeliest = tiny.model("llama")(tokens).logits.argmax(-1)[:, kept - 1 : -1]
    monkeypatch.setattr(sampling, "_draw", lambda logits, _: logits.argmax(-1))
    drawn = sampling.redraw(tiny.streamed(checkpoints("llama")), tokens, 2, 0, kept)
    assert torch.equal(drawn, torch.cat([tokens[:, :kept], likeliest], 1))


def test_a_draw_follows_the_probabilities() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)).mul(3)
    drawn = sampling._draw(logits.repeat(20000, 1), torch.Generator().manual_seed(1))
    share = drawn.bincount(minlength=50) / len(drawn)
    torch.testing.assert_close(share, logits.softmax(-1), atol=0.01, rtol=0)


@pytest.mark.parametrize("dataset", ["synthetic", "self"])
@pytest.mark.parametrize("method", ["flap", "cfsp", "wanda"])
def test_every_statistic_can_be_had_without_text(
    checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, method: str
) -> None:
    monkeypatch.setattr(Documents, "text", pytest.fail)
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
