"""Calibration without any text: tokens drawn by rank, and text that the model writes itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune import prune
from llmprune.checkpoint import reader, reload, source
from llmprune.checkpoint.store import Store
from llmprune.model.sites.linear import LinearLayers
from llmprune.run.job import checkpoint_job, request
from llmprune.text import calibration, sampling, synthetic
from llmprune.text.calibration import Calibration
from tests import tiny
from tests.test_families import check_here


@pytest.fixture(autouse=True)
def _check_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "check", check_here)

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
    asked = Calibration(dataset="synthetic", samples=400, length=32, seed=5, redraws=0)
    never = pytest.fail
    drawn = synthetic.windows(asked, 32, often, never, 4, {}).tokens
    assert drawn.shape == (400, 32)
    share = drawn.flatten().bincount(minlength=tiny.VOCABULARY) / drawn.numel()
    torch.testing.assert_close(share.double(), often / often.sum(), atol=0.02, rtol=0)
    assert torch.equal(drawn, synthetic.windows(asked, 32, often, never, 4, {}).tokens)


def streamed(folder: Path) -> Store:
    found = source.find(str(folder))
    anatomy = reader.blueprint(found, LinearLayers())
    return reader.open_streamed(found, anatomy, torch.float32, torch.device("cpu"))


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

    monkeypatch.setattr(synthetic, "_drawn", certain)
    monkeypatch.setattr(synthetic.ops, "CHUNK", 7 * tiny.VOCABULARY)
    drawn = synthetic.redrawn(streamed(checkpoints(family)), tokens, 2, 0)
    torch.testing.assert_close(torch.cat(seen), expected.flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert max(map(len, seen)) <= 7
    assert torch.equal(drawn[:, :1], tokens[:, :1])
    assert torch.equal(drawn[:, 1:], torch.cat(seen).argmax(-1).reshape(5, 11))


@torch.no_grad()
def test_redraws_settle_on_a_text_from_its_beginning(checkpoints: tiny.Checkpoints) -> None:
    store = streamed(checkpoints("llama"))
    tokens = torch.randint(0, tiny.VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(2))
    met = [tokens]
    for _ in range(9):
        met.append(synthetic.redrawn(store, met[-1], 2, 7))
    for number, now in enumerate(met):
        assert torch.equal(now[:, : number + 1], met[-1][:, : number + 1])
    assert not torch.equal(met[1], met[-1])
    assert not torch.equal(synthetic.redrawn(store, tokens, 2, 8), met[1])


def test_a_draw_follows_the_probabilities() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)).mul(3)
    drawn = synthetic._drawn(logits.repeat(20000, 1), torch.Generator().manual_seed(1))
    share = drawn.bincount(minlength=50) / len(drawn)
    torch.testing.assert_close(share, logits.softmax(-1), atol=0.01, rtol=0)


@torch.no_grad()
def test_what_was_drawn_is_kept_for_the_same_model_and_seed(checkpoints: tiny.Checkpoints) -> None:
    often = torch.ones(tiny.VOCABULARY)
    opened = []

    def open_store() -> Store:
        opened.append(1)
        return streamed(checkpoints("llama"))

    def drawn(identity: dict[str, str] | None, seed: int = 3, redraws: int = 1) -> torch.Tensor:
        asked = Calibration(dataset="synthetic", samples=2, seed=seed, redraws=redraws)
        return synthetic.windows(asked, 8, often, open_store, 2, identity).tokens

    first = drawn({})
    assert torch.equal(drawn({}), first) and len(opened) == 1
    assert torch.equal(drawn(None), first) and len(opened) == 2
    assert torch.equal(drawn({"weights": "others"}), first) and len(opened) == 3
    assert not torch.equal(drawn({}, seed=4), first) and len(opened) == 4
    drawn({}, redraws=2)
    assert len(opened) == 6


def test_a_model_goes_on_with_its_text_where_it_was_cut_off(checkpoints: tiny.Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama"))
    opened, size = [], sampling.batch_size(12)

    def open_model() -> torch.nn.Module:
        opened.append(1)
        return model

    def written(samples: int, seed: int = 3, **identity: str) -> torch.Tensor:
        asked = Calibration(dataset="self", samples=samples, seed=seed)
        return sampling.windows(asked, 12, open_model, identity).tokens

    first = written(size)
    assert first.shape == (size, 12) and len(opened) == 1
    more = written(size + 3)
    assert torch.equal(more[:size], first) and len(opened) == 2
    assert torch.equal(written(size), first) and len(opened) == 2
    assert not torch.equal(written(size, seed=4), first)
    assert len(opened) == 3
    written(1, weights="others")
    assert len(opened) == 4


@pytest.mark.parametrize(("dataset", "width"), [("self", 4), ("synthetic", 0)])
def test_the_plan_counts_a_model_that_writes(checkpoints: tiny.Checkpoints, dataset: str, width: int) -> None:
    asked = {"method": "wanda", "calibration": {"dataset": dataset, "samples": 2, "length": 16}}
    plan = checkpoint_job(str(checkpoints("llama")), *request(asked, {})).plan
    assert plan.writing_bytes == width * plan.parameters
    assert ("has written them" in dict(plan.rows())["calibration"]) == (width > 0)


def test_a_text_is_drawn_from_the_models_own_distribution(checkpoints: tiny.Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints("llama")).eval()
    asked = Calibration(dataset="self", samples=1024, seed=0)
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
