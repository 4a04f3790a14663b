"""Whole units with all that goes when one of them goes.

A unit is one channel of the feed-forward network, or one group of query heads with the key and value head
they share. It is a few inputs of one layer, its consumer, and the outputs of others, its producers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from llmprune.methods.base import Weights
from llmprune.model.families import Part
from llmprune.model.site import Holder, Site


@dataclass(frozen=True, eq=False)
class Span:
    """Outputs of a producer that one kind of unit owns: `step` of them for each, from `start` on."""

    start: int
    step: int


@dataclass(frozen=True, eq=False)
class Producer:
    """A layer whose outputs go with the units."""

    name: str
    module: Callable[[str], nn.Module]
    outputs: int
    inputs: int
    transposed: bool
    biased: bool
    spans: tuple[Span, ...]

    @property
    def key(self) -> str:
        """The name of the weight in the model."""
        return f"{self.name}.weight"

    @property
    def bias_key(self) -> str:
        """The name of the bias in the model, whether there is one or not."""
        return f"{self.name}.bias"

    def of(self, span: Span, units: int) -> Tensor:
        """The weights [units * step, D] of one span's outputs."""
        weight = self.module(self.name).weight
        assert isinstance(weight, Tensor)
        matrix = weight.data.T if self.transposed else weight.data
        return matrix[span.start : span.start + units * span.step]


@dataclass(frozen=True, eq=False)
class UnitSite(Site):
    """Units of one part of a block: the inputs of a consumer, which is `layer`, and what produces them."""

    part: Part = "ffn"
    units: int = 1
    producers: tuple[Producer, ...] = ()
    biased: bool = False
    """Whether the dense consumer has a bias."""

    def read(self, store: Holder) -> Weights:
        """The consumer's weights [O, I], and the factors of its inputs."""
        return Weights(store.weight(self), self.index, self.units, self.rows())

    def rows(self) -> tuple[Tensor, ...]:
        """The weights [I, D] of every factor of the consumer's inputs, as they are now; of heads, the values.

        Empty where the producers stay whole.
        """
        if self.part == "ffn":
            return tuple(p.of(span, self.units) for p in self.producers for span in p.spans)
        if not self.producers:
            return ()
        last = self.producers[-1]  # queries and keys say where to look, values what is passed on
        values = last.of(last.spans[-1], self.units).unflatten(0, (self.units, 1, -1))
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
            rows += sum(span.step for span in producer.spans) * (producer.inputs + producer.biased)
        return self.outputs * self.inputs // self.units + rows
