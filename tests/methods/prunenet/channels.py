"""A small feed-forward network with random weights and inputs."""

import torch

from llmprune.methods.base import Weights
from llmprune.tensors.statistics import Gram

G = torch.Generator().manual_seed(3)
ROWS = (torch.randn(24, 8, generator=G), torch.randn(24, 8, generator=G))
W = torch.randn(8, 24, generator=G) * torch.linspace(0.1, 2, 24)
X = torch.randn(300, 24, generator=G)
CHANNELS = Weights(W, 0, 24, ROWS)


def gram(x: torch.Tensor = X) -> Gram:
    statistic = Gram(x.shape[1])
    statistic.update(x)
    return statistic
