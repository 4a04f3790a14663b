"""What a pruning method is: importance of every weight, and repair of what stays.

A method sees tensors only. It never sees a module, a model family, a device map or a file.

Letters used in shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import ConfigDict
from torch import Tensor

from llmprune.patterns.base import Pattern
from llmprune.patterns.unstructured import Compete
from llmprune.plugins import OPTIONS
from llmprune.tensors.statistics import Nothing, Statistic

S = TypeVar("S", bound=Statistic)
Propagation = Literal["dense", "block", "layer"]


@dataclass(frozen=True)
class Weights:
    """The weight [O, I] of one linear layer, in the dtype of the checkpoint, and its number in the model.

    Where whole units go, it is the layer that consumes their outputs, and its inputs are those of `units`.
    """

    matrix: Tensor
    index: int = 0
    units: int = 0
    rows: tuple[Tensor, ...] = ()
    """The factors of those inputs: for each, the weights [I, D] that it is computed with from the D features
    of the part's own input (gate and up projection, one projection, or the values of heads)."""


@dataclass(frozen=True)
class Solution:
    """A pruned layer: its new weight [O, I], what survives, and what the method has to report.

    `keep` marks weights [O, I], or, where whole units go, inputs [I].
    """

    weight: Tensor
    keep: Tensor = field(repr=False)
    notes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Method(Generic[S]):
    """Override `score` for a new criterion; `solve` to also change the weights that survive.

    The fields of a subclass are its options in a recipe. `S` is the statistic that calibration gathers for
    it, `needs` that class itself; the other class attributes are what it does unless the recipe asks for
    something else.
    """

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS
    needs: ClassVar[type[Statistic]] = Nothing
    propagation: ClassVar[Propagation] = "layer"
    compete: ClassVar[Compete] = "row"
    pattern: ClassVar[Any] = "unstructured"
    allocation: ClassVar[str] = "uniform"
    repair: ClassVar[str] = "none"
    calibration: ClassVar[dict[str, Any]] = {}
    only_units: ClassVar[bool] = False
    """Whether its scores are those of inputs, so that only whole units can go."""

    @property
    def lessons(self) -> int:
        """How many forwards of the calibration text it takes to learn what it scores by."""
        return 0

    def score(self, weights: Weights, statistic: S) -> Tensor:
        """Importance of every weight, float [O, I], or of every input [I]; larger survives."""
        raise NotImplementedError

    def solve(self, weights: Weights, statistic: S, pattern: Pattern, sparsity: float) -> Solution:
        """Prune one layer to `sparsity`, a share from 0 to 1."""
        keep = pattern.keep(self.score(weights, statistic), sparsity, weights.units)
        return Solution(weights.matrix.masked_fill(~keep, 0), keep)

    @classmethod
    def scores_alone(cls) -> bool:
        """Whether `score` by itself settles what goes, so that layers can be compared before pruning."""
        return cls.solve is Method.solve
