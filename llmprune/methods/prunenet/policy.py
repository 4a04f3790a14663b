"""A learned ranking of units: one small network scores the units of all blocks of a model.

Letters used in shapes: I inputs of the consumer, U units, F features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llmprune.errors import RequestError
from llmprune.methods.base import Learned, Method, Weights
from llmprune.tensors.statistics import Gram

HIDDEN = 16


class Policy(nn.Module):
    """features of a unit [U, F] -> its score [U]; linear, with a non-linear part beside it."""

    def __init__(self, features: int, seed: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1, bias=False)
        self.inner = nn.Linear(features, HIDDEN)
        self.outer = nn.Linear(HIDDEN, 1, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.inner.weight.normal_(generator=generator).div_(features**0.5)
            for start_at_zero in (self.inner.bias, self.outer.weight, self.linear.weight):
                start_at_zero.zero_()  # every unit is as likely as any other

    def forward(self, features: Tensor) -> Tensor:
        """[U, F] -> [U]"""
        scores: Tensor = self.linear(features) + self.outer(torch.tanh(self.inner(features)))
        return scores[:, 0]


@dataclass(frozen=True)
class ByPolicy(Method[Gram]):
    """Units go in the order of a policy's scores."""

    policies: dict[str, Policy]
    """By the part of a block: `ffn`, `attention`."""

    record: dict[str, Any]
    """`shapes`, what each policy was made for, and how it was trained or from which file it was read."""

    needs: ClassVar = Gram

    @torch.no_grad()
    def score(self, weights: Weights, statistic: Gram) -> Tensor:
        """float32 [I], the same for all inputs of a unit."""
        scores: Tensor = self.policies[part(weights)](features(weights, statistic).cpu())
        return scores.repeat_interleave(weights.matrix.shape[1] // weights.units)

    def state(self) -> dict[str, Tensor]:
        """The parameters of every policy, by its part and their names in it."""
        return {
            f"{name}.{key}": tensor
            for name, policy in self.policies.items()
            for key, tensor in policy.state_dict().items()
        }

    def facts(self) -> dict[str, Any]:
        """The record."""
        return self.record


def restored(earlier: Learned) -> ByPolicy:
    """The method whose `state` and `facts` these are; other tensors raise whatever error they lead to."""
    policies = {}
    for name, made_for in earlier.facts["shapes"].items():
        own = {k.partition(".")[2]: v for k, v in earlier.tensors.items() if k.startswith(f"{name}.")}
        policies[name] = Policy(feature_count(made_for))
        policies[name].load_state_dict(own)
    return ByPolicy(policies, earlier.facts)


def require_fit(shapes: dict[str, Any], sites: Iterable[Weights], file: str) -> None:
    """Refuse the policies of another model; the first block stands for all.

    Raises:
        RequestError: a part has no policy, or it was made for other sizes.
    """
    checked = set()
    for weights in sites:
        name, found = part(weights), shape(weights)
        if name in checked:  # a block has one site of each part, so this is the next block's
            return
        checked.add(name)
        if name not in shapes:
            trained = " and ".join(shapes)
            raise RequestError(
                "policy", f"{file} is for {trained} alone; set pattern.parts to that or train another"
            )
        if found != shapes[name]:
            raise RequestError(
                "policy",
                f"{file} was made for {shapes[name]}, and the model's {name} is {found}; train another",
            )


def part(weights: Weights) -> str:
    """Channels are units of one input; groups of heads have many."""
    return "ffn" if weights.units == weights.matrix.shape[1] else "attention"


def shape(weights: Weights) -> dict[str, Any]:
    """What a policy is made for: the sizes of the consumer, its units, and how many factors they have."""
    outputs, inputs = weights.matrix.shape
    return {"outputs": outputs, "inputs": inputs, "units": weights.units, "factors": len(weights.rows)}


def feature_count(made_for: dict[str, Any]) -> int:
    """F, the number of `features` of a unit in sites of one shape."""
    return 3 + int(made_for["factors"])


def features(weights: Weights, statistic: Gram) -> Tensor:
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
