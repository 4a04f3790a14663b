"""Wanda against an independent transcription of the paper's formula."""

import pytest
import torch

from llmprune.methods.base import Weights
from llmprune.methods.wanda import Wanda
from llmprune.patterns.n_of_m import NofM
from llmprune.patterns.unstructured import Unstructured
from llmprune.tensors.statistics import InputNorm


def transcription(weight: torch.Tensor, x: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Algorithm 1 of arXiv:2306.11695: metric, then the smallest of each row by a stable sort."""
    metric = weight.abs().float() * (x.float().double() ** 2).mean(0).sqrt().float()
    pruned = weight.clone()
    for row, score in zip(pruned, metric, strict=True):
        row[score.sort(stable=True).indices[: int(len(score) * sparsity)]] = 0
    return pruned


def statistic(x: torch.Tensor) -> InputNorm:
    found = InputNorm(x.shape[1])
    for piece in x.split(13):
        found.update(piece)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
def test_masks_equal_the_transcription_bit_for_bit(dtype, sparsity):
    weight, x = torch.randn(31, 64).to(dtype), torch.randn(200, 64) * torch.rand(64).exp()
    found = Wanda().solve(Weights(weight), statistic(x), Unstructured(), sparsity).weight
    assert torch.equal(found, transcription(weight, x, sparsity))


def test_two_of_four_equals_the_transcription_group_by_group():
    weight, x = torch.randn(16, 32), torch.randn(100, 32)
    found = Wanda().solve(Weights(weight), statistic(x), NofM(2, 4), 0.5).weight
    groups = [transcription(w, i, 0.5) for w, i in zip(weight.split(4, 1), x.split(4, 1), strict=True)]
    assert torch.equal(found, torch.cat(groups, 1))


def test_a_large_weight_on_a_silent_input_goes_first():
    x = torch.ones(10, 4) * torch.tensor([0.001, 1.0, 1.0, 1.0])
    found = Wanda().solve(Weights(torch.tensor([[9.0, 1.0, 1.0, 1.0]])), statistic(x), Unstructured(), 0.25)
    assert found.weight.tolist() == [[0.0, 1.0, 1.0, 1.0]]
