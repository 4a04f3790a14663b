"""A model that lost whole blocks is recovered against the dense model's blocks of the same origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmprune import prune, recover
from llmprune.errors import RequestError
from tests import tiny

TOKENS = torch.randint(3, tiny.VOCABULARY, (16, 32), generator=torch.Generator().manual_seed(11))
TEXT = {"calibration": {"samples": 16, "length": 32}}
DEPTH: dict[str, Any] = {"pattern": {"name": "blocks", "remove": [1]}}
NARROW: dict[str, Any] = {"method": "magnitude", "sparsity": 0.5, "pattern": {"name": "units", "multiple": 4}}
UNEVEN = NARROW | {"allocation": {"name": "profile", "blocks": [0.25, 0.75]}, "layout": "per_layer"}
MASK: dict[str, Any] = {"method": "magnitude", "pattern": "2:4"}


pytestmark = pytest.mark.usefixtures("check_in_process")


def hidden(folder: Path, number: int) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model(TOKENS, output_hidden_states=True).hidden_states[number]


@torch.no_grad()
@pytest.mark.parametrize("then", [NARROW, UNEVEN, MASK], ids=["narrow", "uneven", "masked"])
def test_reconstruct_pairs_blocks_by_their_dense_index(
    then: dict[str, Any], checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    dense = checkpoints("llama")
    prune(dense, {**TEXT, "steps": [DEPTH, then]}, out=tmp_path / "out")
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert pruned.config.llmprune["blocks"] == [0, 2]
    report = recover(tmp_path / "out", "reconstruct", tokens=TOKENS, out=tmp_path / "recovered")
    assert [refit["name"].split(".")[2] for refit in report.recovery["sites"]] == ["0", "0", "1", "1"]
    target = hidden(dense, 3)
    before, after = (
        float((hidden(tmp_path / name, 2) - target).square().sum()) for name in ("out", "recovered")
    )
    assert after < before


def test_adapters_are_trained_on_fewer_blocks(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    report = prune(
        checkpoints("llama"), {**TEXT, **DEPTH, "recovery": {"name": "lora", "rank": 2}}, out=tmp_path / "out"
    )
    assert len(report.recovery["ranks"]) == 2


def test_a_dense_model_without_these_blocks_is_refused(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), DEPTH, out=tmp_path / "out")
    other = {"pattern": {"name": "blocks", "remove": [2], "keep_ends": False}}
    prune(checkpoints("llama"), other, out=tmp_path / "other")
    with pytest.raises(RequestError, match=r"baseline: the pruned model has the blocks \[0, 2\]"):
        recover(tmp_path / "out", "reconstruct", baseline=str(tmp_path / "other"), tokens=TOKENS)


@torch.no_grad()
@pytest.mark.parametrize("part", ["attention", "ffn"])
def test_reconstruct_makes_up_for_a_removed_part(
    part: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    skipping = {"pattern": {"name": "blocks", "parts": part, "remove": [1]}}
    prune(checkpoints("llama"), TEXT | skipping, out=tmp_path / "out")
    recover(tmp_path / "out", "reconstruct", tokens=TOKENS, out=tmp_path / "recovered")
    target = hidden(checkpoints("llama"), 3)
    before, after = (
        float((hidden(tmp_path / name, 3) - target).square().sum()) for name in ("out", "recovered")
    )
    assert after < before
