"""Adapters learn from the text, follow the blocks' influence, and leave sizes and zeros alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune import prune, recover
from llmprune.checkpoint import reload
from tests import tiny
from tests.recovery.test_reconstruct import PRUNED, tensors
from tests.test_families import check_here

pytest.importorskip("peft", reason="needs peft: pip install llmprune[recover]")
HOW = {"name": "lora", "epochs": 6, "learning_rate": 1e-2, "rank": 4}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("pruned", ["units with biases", "2:4"])
def test_the_loss_falls_and_sizes_and_zeros_stay(
    pruned: str, checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "check", check_here)
    asked = PRUNED[pruned] | {"calibration": {"samples": 16, "length": 32}}
    prune(checkpoints("llama"), asked, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW)
    assert report.recovery is not None
    losses, ranks = report.recovery["losses"], report.recovery["ranks"]
    assert len(losses) == 6 * 8
    assert sum(losses[-8:]) < sum(losses[:8])
    assert len(ranks) == 3
    assert min(ranks) >= 1
    before, after = tensors(tmp_path / "out"), tensors(tmp_path / "out-recovered")
    assert {k: t.shape for k, t in before.items()} == {k: t.shape for k, t in after.items()}
    if pruned == "2:4":
        assert all(((t == 0) <= (after[key] == 0)).all() for key, t in before.items() if t.ndim == 2)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out-recovered")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_checkpoint_in_half_precision_is_checked_as_it_was_stored(
    checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "check", check_here)
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(checkpoints("llama"), dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(checkpoints("llama")).save_pretrained(half)
    asked = PRUNED["2:4"] | {"calibration": {"samples": 4, "length": 32}}
    prune(half, asked, out=tmp_path / "out")
    report = recover(tmp_path / "out", HOW, dtype="float32")
    assert report.reload is not None and report.reload["compared"] == "logits"
    assert {t.dtype for t in tensors(tmp_path / "out-recovered").values()} == {torch.bfloat16}
