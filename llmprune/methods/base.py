"""What a pruning method is: importance of every weight, and repair of what stays.

A method sees tensors only. It never sees a module, a model family, a device map or a file.

Letters used in shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

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


class Examples(Protocol):
    """What a method learns from."""

    def __call__(self, needs: type[S], /) -> Iterator[tuple[Weights, S]]:
        """Every site of the dense model, block by block, with its statistic.

        A call takes one forward pass over the calibration set; with `Nothing`, none.
        """


@dataclass(frozen=True)
class Learned:
    """What a method learned in an earlier run."""

    tensors: dict[str, Tensor]
    """Its `state`."""

    facts: dict[str, Any]
    """Its `facts`."""

    file: str | None = None
    """Where it was found, as the user named it; None for what a resumed run learned itself."""


@dataclass(frozen=True)
class Method(Generic[S]):
    """Override `score` for a new criterion; `solve` to also change the weights that survive.

    A method that learns before it scores overrides `training_passes`, `learned` and `state`.

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
    serves: ClassVar[tuple[str, ...]] = ("weights", "units")
    """Between what it can choose: single `weights`, whole `units` or `blocks`, `rows` of the vocabulary."""

    @property
    def training_passes(self) -> int:
        """Forward passes over the calibration set that it takes to learn."""
        return 0

    @property
    def reuses(self) -> str | None:
        """The file of an earlier run that holds what to score by, or None to learn it."""
        return None

    def learned(self, examples: Examples, earlier: Learned | None) -> Method[S]:
        """The method that scores: this one, or another that holds what was learned.

        Args:
            examples: the dense model; none while its weights are not read and `earlier` is only checked.
            earlier: the state that an earlier run left, to be used as it is; None to learn.

        Raises:
            RequestError: `earlier` does not fit the model. Any other error means that it is no state of this
                method.
        """
        return self

    def state(self) -> dict[str, Tensor]:
        """What it learned, for `learned` to take back; empty if it did not learn."""
        return {}

    def facts(self) -> dict[str, Any]:
        """How it learned that, as plain data, for the report and for `learned`."""
        return {}

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
