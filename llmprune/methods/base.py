"""Base class of pruning methods, which score every weight and may update the kept ones.

A method works on tensors only. It never handles a module, a model family, a device map or a file.

Letters used in shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar

from pydantic import ConfigDict
from torch import Tensor

from llmprune.patterns.base import Pattern
from llmprune.patterns.unstructured import Compete
from llmprune.plugins import OPTIONS
from llmprune.tensors.statistics import Nothing, Statistic

S = TypeVar("S", bound=Statistic)
Propagation = Literal["dense", "block", "layer"]
Target = Literal["pruned", "dense"]


@dataclass(frozen=True)
class Weights:
    """The weight [O, I] of one linear layer, in the dtype of the checkpoint, and its index in the model.

    When whole units are removed, it is the layer that reads their outputs: its inputs form `units` units.
    """

    matrix: Tensor
    index: int = 0
    units: int = 0
    rows: tuple[Tensor, ...] = ()
    """The projections that compute these inputs from the D features of the attention's or feed-forward
    network's input, each [I, D]: gate and up projection, one projection, or the values of heads."""


@dataclass(frozen=True)
class Solution:
    """A pruned layer: its weight [O, I], the mask [O, I] or of whole inputs [I], numbers for the report."""

    weight: Tensor
    keep: Tensor = field(repr=False)
    notes: dict[str, float] = field(default_factory=dict)


class Examples(Protocol):
    """Gives a method the sites to learn from."""

    def __call__(self, needs: type[S], /) -> Iterator[tuple[Weights, S]]:
        """Yield every site of the dense model with its statistic: one forward pass; with `Nothing`, none."""


@dataclass(frozen=True)
class Learned:
    """What a method learned in an earlier run."""

    tensors: dict[str, Tensor]
    """Its `state`."""

    facts: dict[str, Any]
    """Its `facts`."""

    file: str | None = None
    """The path that the user gave; None for the state of the run that is resumed."""


@dataclass(frozen=True)
class Method(Generic[S]):
    """Override `score` for a new criterion; `solve` to also change the kept weights; `training_passes`,
    `learned` and `state` to learn before that.

    The fields of a subclass are its options in a recipe. `S` is the statistic that calibration gathers for
    it, and `needs` is the same class at run time. The other class attributes are defaults of the recipe.
    """

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS
    needs: ClassVar[type[Statistic]] = Nothing
    propagation: ClassVar[Propagation] = "layer"
    target: ClassVar[Target] = "pruned"
    compete: ClassVar[Compete] = "row"
    pattern: ClassVar[str | dict[str, object]] = "unstructured"
    allocation: ClassVar[str] = "uniform"
    repair: ClassVar[str] = "none"
    calibration: ClassVar[dict[str, object]] = {}
    serves: ClassVar[tuple[str, ...]] = ("weights", "units")
    """Between what it can choose: single `weights`, whole `units` or `blocks`, `rows` of the vocabulary."""

    @property
    def gathers(self) -> type[Statistic]:
        """What calibration gathers for it: what it needs, or more."""
        return self.needs

    @property
    def by_rows(self) -> bool:
        """Whether it prunes each row by itself, and takes so long that several processes share the rows."""
        return False

    @property
    def training_passes(self) -> int:
        """Number of forward passes over the calibration set to learn."""
        return 0

    @property
    def state_file(self) -> str | None:
        """The file with the state of an earlier run, which replaces learning; None to learn."""
        return None

    def learned(self, examples: Examples, earlier: Learned | None) -> Method[S]:
        """Return the method that scores: this one, or another that holds what was learned.

        Args:
            examples: the sites of the dense model; yields none when `earlier` is only checked.
            earlier: the state of an earlier run, to use unchanged; None to learn.

        Raises:
            RequestError: `earlier` does not fit the model. Any other error means that it is not a state of
                this method.
        """
        return self

    def state(self) -> dict[str, Tensor]:
        """Return what was learned, which `learned` can restore; empty if nothing was learned."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return how it was learned, as JSON data, for the report and for `learned`."""
        return {}

    def score(self, weights: Weights, statistic: S) -> Tensor:
        """Return the importance of every weight, float [O, I], or input [I]; the largest are kept."""
        raise NotImplementedError

    def solve(self, weights: Weights, statistic: S, pattern: Pattern, sparsity: float) -> Solution:
        """Prune one layer to `sparsity`, a share from 0 to 1."""
        # Chosen, not multiplied by 0, which would turn negative weights into -0.0 and infinite ones into NaN.
        keep = pattern.keep(self.score(weights, statistic), sparsity, weights.units)
        return Solution(weights.matrix.where(keep, 0), keep)

    @classmethod
    def scores_alone(cls) -> bool:
        """Return whether `score` alone decides the mask, so that layers can be compared before pruning."""
        return cls.solve is Method.solve


PruningMethod: TypeAlias = Method[Any]  # a method, whatever its statistic
