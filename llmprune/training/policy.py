"""A learned ranking of units: one small network scores the units of all blocks of a model.

Letters used in shapes: I inputs of the consumer, U units, F facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import Gram

HIDDEN = 16


class Policy(nn.Module):
    """facts of a unit [U, F] -> its score [U]; linear, with a non-linear part beside it."""

    def __init__(self, facts: int, seed: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(facts, 1, bias=False)
        self.inner = nn.Linear(facts, HIDDEN)
        self.outer = nn.Linear(HIDDEN, 1, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.inner.weight.normal_(generator=generator).div_(facts**0.5)
            for start_at_zero in (self.inner.bias, self.outer.weight, self.linear.weight):
                start_at_zero.zero_()  # every unit is as likely as any other

    def forward(self, facts: Tensor) -> Tensor:
        """[U, F] -> [U]"""
        scores: Tensor = self.linear(facts) + self.outer(torch.tanh(self.inner(facts)))
        return scores[:, 0]


@dataclass(frozen=True)
class ByPolicy(Method[Gram]):
    """Units go in the order of a policy's scores; what a method that learns has become."""

    policies: dict[str, Policy]
    """By the part of a block: `ffn`, `attention`."""

    about: dict[str, Any]
    """How they were made, or where they were taken from."""

    needs: ClassVar = Gram

    @torch.no_grad()
    def score(self, weights: Weights, statistic: Gram) -> Tensor:
        """float32 [I], the same for all inputs of a unit."""
        scores: Tensor = self.policies[part(weights)](facts(weights, statistic).cpu())
        return scores.repeat_interleave(weights.matrix.shape[1] // weights.units)


def part(weights: Weights) -> str:
    """Channels are units of one input; groups of heads have many."""
    return "ffn" if weights.units == weights.matrix.shape[1] else "attention"


def shape(weights: Weights) -> dict[str, Any]:
    """What a policy is made for: the sizes of the consumer, its units, and how many factors they have."""
    outputs, inputs = weights.matrix.shape
    return {"outputs": outputs, "inputs": inputs, "units": weights.units, "factors": len(weights.rows)}


def facts(weights: Weights, statistic: Gram) -> Tensor:
    """What the policy sees of every unit, float32 [U, F], standardised over the units of the block.

    Logarithms of the energy that enters the consumer, of what that makes of its output, of the norms of the
    consumer's columns and of every factor's rows.
    """
    columns = weights.matrix.float().square().sum(0)
    energy = statistic.diagonal
    measures = [energy, energy * columns, columns, *(rows.float().square().sum(1) for rows in weights.rows)]
    by_unit = torch.stack([m.reshape(weights.units, -1).mean(1) for m in measures], 1)
    logs = by_unit.clamp_min(1e-30).log()
    return (logs - logs.mean(0)) / logs.std(0).clamp_min(1e-6)
