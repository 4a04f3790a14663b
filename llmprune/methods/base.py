"""What a pruning method is: importance of every weight, and repair of what stays.

A method sees tensors only. It never sees a module, a model family, a device map or a file.

Letters used in shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, TypeVar

from pydantic import ConfigDict
from torch import Tensor

from llmprune.patterns import Compete, Pattern
from llmprune.statistics import Nothing, Statistic

S = TypeVar("S", bound=Statistic)
Propagation = Literal["dense", "block", "layer"]


@dataclass(frozen=True)
class Weights:
    """The weight [O, I] of one linear layer, in the dtype of the checkpoint, and its number in the model."""

    matrix: Tensor
    index: int = 0


@dataclass(frozen=True)
class Solution:
    """A pruned layer: its new weight [O, I], which weights survive, and what the method has to report."""

    weight: Tensor
    keep: Tensor = field(repr=False)
    notes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Method(Generic[S]):
    """Override `score` for a new criterion; `solve` to also change the weights that survive.

    The fields of a subclass are its options in a recipe. `S` is the statistic that calibration gathers for
    it, `needs` that class itself; `propagation` and `compete` are what it does unless the recipe asks for
    something else.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    needs: ClassVar[type[Statistic]] = Nothing
    propagation: ClassVar[Propagation] = "layer"
    compete: ClassVar[Compete] = "row"

    def score(self, weights: Weights, statistic: S) -> Tensor:
        """Importance of every weight, float [O, I]; larger survives."""
        raise NotImplementedError

    def solve(self, weights: Weights, statistic: S, pattern: Pattern, sparsity: float) -> Solution:
        """Prune one layer to `sparsity`, a share from 0 to 1."""
        keep = pattern.keep(self.score(weights, statistic), sparsity)
        return Solution(weights.matrix.masked_fill(~keep, 0), keep)

    @classmethod
    def scores_alone(cls) -> bool:
        """Whether `score` by itself settles what goes, so that layers can be compared before pruning."""
        return cls.solve is Method.solve
