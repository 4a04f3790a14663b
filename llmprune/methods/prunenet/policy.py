"""The policy: a small network that scores the units of all blocks of a model.

Letters used in shapes: I inputs of the layer that reads the units, U units, F features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from llmprune.errors import RequestError
from llmprune.methods.base import Learned, Method, Weights
from llmprune.tensors.statistics import Gram

HIDDEN = 16


class SiteShape(TypedDict):
    """The sizes that a policy was trained for."""

    outputs: int
    inputs: int
    units: int
    factors: int
    """Number of projections that compute the inputs (`Weights.rows`)."""


class Policy(nn.Module):
    """Features of units [U, F] -> scores [U]: a linear part plus a small non-linear part."""

    def __init__(self, features: int, seed: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1, bias=False)
        self.inner = nn.Linear(features, HIDDEN)
        self.outer = nn.Linear(HIDDEN, 1, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.inner.weight.normal_(generator=generator).div_(features**0.5)
            for start_at_zero in (self.inner.bias, self.outer.weight, self.linear.weight):
                start_at_zero.zero_()  # all scores are equal, so training starts from uniform draws

    def forward(self, features: Tensor) -> Tensor:
        """[U, F] -> [U]"""
        scores: Tensor = self.linear(features) + self.outer(torch.tanh(self.inner(features)))
        return scores[:, 0]


@dataclass(frozen=True)
class ByPolicy(Method[Gram]):
    """Rank units by the scores of trained policies."""

    policies: dict[str, Policy]
    """By part of a block: `ffn`, `attention`."""

    record: dict[str, Any]
    """`shapes` that each policy was trained for, and how it was trained or the file it was read from."""

    needs: ClassVar = Gram

    @torch.no_grad()
    def score(self, weights: Weights, statistic: Gram) -> Tensor:
        """Return float32 [I], the same for all inputs of a unit."""
        scores: Tensor = self.policies[part(weights)](features(weights, statistic).cpu())
        return scores.repeat_interleave(weights.matrix.shape[1] // weights.units)

    def state(self) -> dict[str, Tensor]:
        """Return the parameters of all policies, with keys `<part>.<parameter>`."""
        return {
            f"{name}.{key}": tensor
            for name, policy in self.policies.items()
            for key, tensor in policy.state_dict().items()
        }

    def facts(self) -> dict[str, Any]:
        """Return the record."""
        return self.record


def restored(earlier: Learned) -> ByPolicy:
    """Rebuild the method from its `state` and `facts`; anything else raises some error."""
    policies = {}
    for name, trained_for in earlier.facts["shapes"].items():
        own = {k.partition(".")[2]: v for k, v in earlier.tensors.items() if k.startswith(f"{name}.")}
        policies[name] = Policy(feature_count(trained_for))
        policies[name].load_state_dict(own)
    return ByPolicy(policies, earlier.facts)


def require_same_shapes(shapes: dict[str, SiteShape], sites: Iterable[Weights], file: str) -> None:
    """Refuse the policies of another model, by the shapes of the first block.

    Raises:
        RequestError: a part has no policy, or its policy was trained for other shapes.
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
                "policy", f"{file} is for {trained} only; set pattern.parts to that or train another policy"
            )
        if found != shapes[name]:
            raise RequestError(
                "policy",
                f"{file} was trained for {shapes[name]}, and the model's {name} is {found}; train a new one",
            )


def part(weights: Weights) -> str:
    """Return the part of the block: channels are units of one input, groups of heads have many."""
    return "ffn" if weights.units == weights.matrix.shape[1] else "attention"


def shape(weights: Weights) -> SiteShape:
    """Return the shape of a site, which a policy must match."""
    outputs, inputs = weights.matrix.shape
    return {"outputs": outputs, "inputs": inputs, "units": weights.units, "factors": len(weights.rows)}


def feature_count(site: SiteShape) -> int:
    """Return F, the number of `features` of a unit."""
    return 3 + int(site["factors"])


def features(weights: Weights, statistic: Gram) -> Tensor:
    """Return the policy's input for every unit, float32 [U, F], standardised over the units of the block.

    The features are logarithms: of the mean square of the inputs, of its contribution to the output, of the
    squared norms of the weight's columns, and of the squared norms of the rows of each projection in
    `Weights.rows`.
    """
    columns = weights.matrix.float().square().sum(0)
    energy = statistic.diagonal
    measures = [energy, energy * columns, columns, *(rows.float().square().sum(1) for rows in weights.rows)]
    by_unit = torch.stack([m.reshape(weights.units, -1).mean(1) for m in measures], 1)
    logs = by_unit.clamp_min(1e-30).log()
    # Standardised, so that one policy fits blocks whose weights and activations differ in scale.
    return (logs - logs.mean(0)) / logs.std(0).clamp_min(1e-6)
