"""Magnitude pruning against its one-line formula."""

import pytest
import torch

from llmprune.methods.base import Weights
from llmprune.methods.magnitude import Magnitude
from llmprune.patterns.n_of_m import NofM
from llmprune.patterns.unstructured import Unstructured
from llmprune.tensors.statistics import Nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_smallest_weights_of_the_matrix_go(dtype):
    weight = torch.randn(24, 36).to(dtype)
    solution = Magnitude().solve(Weights(weight), Nothing(36), Unstructured("matrix"), 0.3)
    order = weight.abs().flatten().argsort(stable=True)
    expected = weight.clone().flatten()
    expected[order[: round(0.3 * 24 * 36)]] = 0
    assert torch.equal(solution.weight, expected.reshape(24, 36))
    assert solution.weight.dtype == dtype


def test_two_of_four_keeps_the_two_largest():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
    solution = Magnitude().solve(Weights(weight), Nothing(4), NofM(2, 4), 0.5)
    assert solution.weight.tolist() == [[0.0, -3.0, 2.0, 0.0]]
