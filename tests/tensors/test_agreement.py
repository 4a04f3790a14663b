"""KL divergence and top-1 agreement, against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from llmprune.tensors.agreement import Agreement, agreement


def test_a_model_agrees_with_itself() -> None:
    logits = torch.randn(7, 11)
    found = agreement(logits, logits)
    assert found == Agreement(0.0, 7, 7)


def test_kl_and_top1_are_those_of_the_definition() -> None:
    dense, pruned = torch.randn(7, 11), torch.randn(7, 11)
    found = agreement(dense, pruned)
    expected = F.kl_div(pruned.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="sum")
    assert found.kl == pytest.approx(float(expected), rel=1e-5)
    assert found.same == int((dense.argmax(-1) == pruned.argmax(-1)).sum())
    assert found + found == Agreement(2 * found.kl, 2 * found.same, 14)


def test_padded_vocabularies_are_compared_over_the_narrower_one() -> None:
    dense = torch.randn(3, 8)
    wide = torch.cat([dense, torch.full((3, 4), 50.0)], 1)
    assert agreement(dense, wide) == Agreement(0.0, 3, 3)
