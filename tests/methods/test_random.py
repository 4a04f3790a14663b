"""Random pruning is random, and the same every time."""

import torch

from llmprune.methods.base import Weights
from llmprune.methods.random import Random
from llmprune.patterns.unstructured import Unstructured
from llmprune.tensors.statistics import Nothing


def mask(seed: int, index: int) -> torch.Tensor:
    weights = Weights(torch.ones(50, 60), index)
    return Random(seed).solve(weights, Nothing(60), Unstructured(), 0.5).keep


def test_the_seed_and_the_layer_settle_the_mask():
    assert torch.equal(mask(0, 3), mask(0, 3))
    assert not torch.equal(mask(0, 3), mask(1, 3))
    assert not torch.equal(mask(0, 3), mask(0, 4))


def test_every_column_is_hit_about_equally():
    dropped = (~mask(0, 0)).float().mean(0)
    assert 0.2 < dropped.min() < dropped.max() < 0.8
