"""The places to prune: linear layers, and units with all that goes when one of them goes.

A unit is one channel of the feed-forward network, or one group of query heads with the key and value head
they share. It is a few inputs of one layer, its consumer, and the outputs of others, its producers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Part = Literal["attention", "ffn"]
Parts = Literal["all", "attention", "ffn"]


@dataclass(frozen=True, eq=False)
class Site:
    """One place to prune: a linear layer of a block."""

    name: str
    index: int
    block: int
    layer: nn.Module
    inputs: int
    outputs: int
    transposed: bool
    """Whether the layer stores its weight as [inputs, outputs] (GPT-2's Conv1D)."""

    @property
    def kind(self) -> str:
        """The layer's name inside its block, such as `self_attn.q_proj`."""
        return self.name.split(f".{self.block}.", 1)[-1]

    @property
    def weight(self) -> Tensor:
        """The layer's weight as it is now, in its own layout."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight.data

    @property
    def weights(self) -> int:
        """How many weights the layer has."""
        return self.inputs * self.outputs

    def matrix(self, stored: Tensor) -> Tensor:
        """The stored weight as a matrix [O, I], and back: the same turn both ways."""
        return stored.T if self.transposed else stored


@dataclass(frozen=True, eq=False)
class Run:
    """Outputs of a producer that one kind of unit owns: `step` of them for each, from `start` on."""

    start: int
    step: int


@dataclass(frozen=True, eq=False)
class Producer:
    """A layer whose outputs go with the units."""

    name: str
    layer: nn.Module
    outputs: int
    inputs: int
    transposed: bool
    runs: tuple[Run, ...]

    def of(self, run: Run, units: int) -> Tensor:
        """The weights [units * step, D] of one run's outputs."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        matrix = weight.data.T if self.transposed else weight.data
        return matrix[run.start : run.start + units * run.step]


@dataclass(frozen=True, eq=False)
class UnitSite(Site):
    """Units that go as a whole: the inputs of a consumer, which is `layer`, and what produces them."""

    part: Part = "ffn"
    units: int = 1
    producers: tuple[Producer, ...] = ()
    biased: bool = False
    """Whether the dense consumer has a bias."""

    def rows(self) -> tuple[Tensor, ...]:
        """The weights [I, D] of every factor of the consumer's inputs, as they are now; of heads, the values.

        Empty where the producers stay whole.
        """
        if self.part == "ffn":
            return tuple(p.of(run, self.units) for p in self.producers for run in p.runs)
        if not self.producers:
            return ()
        last = self.producers[-1]  # queries and keys say where to look, values what is passed on
        values = last.of(last.runs[-1], self.units).unflatten(0, (self.units, 1, -1))
        share = self.inputs // (values.shape[2] * self.units)
        return (values.expand(-1, share, -1, -1).flatten(0, 2),)

    @property
    def kind(self) -> str:
        """`attention` or `ffn`."""
        return self.part

    @property
    def weights(self) -> int:
        """All parameters that go if every unit goes."""
        return self.units * self.cost

    @property
    def cost(self) -> int:
        """Parameters that go with one unit: its columns of the consumer, its rows of the producers."""
        rows = 0
        for producer in self.producers:
            biased = getattr(producer.layer, "bias", None) is not None
            rows += sum(run.step for run in producer.runs) * (producer.inputs + biased)
        return self.outputs * self.inputs // self.units + rows
