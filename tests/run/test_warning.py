"""A budget that takes far more of some block than was asked is warned of, and none is otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmprune import Report, prune
from tests import tiny

TOKENS = torch.randint(3, tiny.VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(2))
UNITS = {"name": "units", "multiple": 8}


def pruned(shares: list[float], sparsity: float, **more: Any) -> Report:
    model = LlamaForCausalLM(LlamaConfig(**{**tiny.COMMON, "num_key_value_heads": 1})).eval()
    allocation = {"name": "profile", "blocks": shares}
    return prune(
        model, {"method": "wanda", "sparsity": sparsity, "allocation": allocation, **more}, tokens=TOKENS
    )


def test_a_block_that_loses_over_two_and_a_half_times_as_much_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (warning,) = pruned([0.0, 0.1, 0.8], 0.3).warnings
    assert warning.startswith("block 2 loses 80% of what can go where 30% was asked; ")
    assert f"warning: {warning}" in capsys.readouterr().err


def test_further_blocks_are_counted() -> None:
    model = LlamaForCausalLM(LlamaConfig(**{**tiny.COMMON, "num_hidden_layers": 6})).eval()
    allocation = {"name": "profile", "blocks": [0.0, 0.0, 0.0, 0.0, 0.6, 0.6]}
    report = prune(model, {"method": "wanda", "sparsity": 0.2, "allocation": allocation}, tokens=TOKENS)
    assert "block 4 loses 60% " in report.warnings[0]
    assert ", and 1 more lose over 2.5 times as much as was asked; " in report.warnings[0]


@pytest.mark.parametrize(("shares", "sparsity"), [([0.1, 0.2, 0.6], 0.3), ([0.0, 0.25, 0.74], 0.33)])
def test_no_block_is_named_up_to_that(shares: list[float], sparsity: float) -> None:
    assert pruned(shares, sparsity).warnings == []


def test_what_cannot_go_does_not_hide_what_does() -> None:
    """A block with one group of heads loses channels alone, which are less than all of it."""
    report = pruned([0.05, 0.1, 0.45], 0.2, pattern=UNITS)
    attention, channels = (site for site in report.sites if site.block == 2)
    assert attention.reached == 0
    whole = channels.reached * channels.weights / (channels.weights + attention.weights)
    assert whole < 2.5 * 0.2 < channels.reached
    assert report.warnings[0].startswith(f"block 2 loses {channels.reached:.0%} of what can go")


def test_whole_blocks_may_go() -> None:
    model = tiny.model("llama")
    assert prune(model, {"method": "shortgpt", "sparsity": 0.34}, tokens=TOKENS).warnings == []
