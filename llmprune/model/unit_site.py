"""Whole units, with all parameters that are removed together with one.

A unit is one channel of the feed-forward network, or one group of query heads with the key and value head
they share. It consists of some inputs of one layer, the consumer, and some outputs of other layers, the
producers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llmprune.methods.base import Weights
from llmprune.model.families import Part
from llmprune.model.site import Site, WeightStore


@dataclass(frozen=True, eq=False)
class Span:
    """A range of a producer's outputs: `step` of them for each unit, beginning at `start`."""

    start: int
    step: int

    def rows(self, units: Tensor) -> Tensor:
        """The numbers of the outputs that belong to some units."""
        return (self.start + units[:, None] * self.step + torch.arange(self.step)).flatten()


def spans_of(contents: str, units: int, step: int, share: int) -> tuple[Span, ...]:
    """The ranges of a producer's outputs, given what they hold in order.

    Args:
        contents: a word for each range, which has all outputs of one unit before those of the next; its
            letters say what a unit has there.
        units: how many there are.
        step: inputs of the consumer for each unit.
        share: query heads for each key and value head.
    """
    # Keys and values have one head for each group, queries have `share` of them.
    steps = [sum(step // share if letter in "kv" else step for letter in word) for word in contents.split()]
    return tuple(Span(units * sum(steps[:i]), one) for i, one in enumerate(steps))


def sizes(layer: nn.Module) -> tuple[int, int, bool]:
    """Outputs and inputs of a linear layer, and whether it stores its weight as [inputs, outputs]."""
    assert isinstance(layer.weight, Tensor)
    first, second = layer.weight.shape
    return (second, first, True) if isinstance(layer, Conv1D) else (first, second, False)


@dataclass(frozen=True, eq=False)
class Producer:
    """A layer whose outputs are removed together with the units."""

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

    def weights_of(self, span: Span, units: int) -> Tensor:
        """The weights [units * step, D] that compute the outputs of one span."""
        weight = self.module(self.name).weight
        assert isinstance(weight, Tensor)
        matrix = weight.data.T if self.transposed else weight.data
        return matrix[span.start : span.start + units * span.step]


@dataclass(frozen=True, eq=False)
class UnitSite(Site):
    """The units of one part of a block; `layer` is the consumer."""

    part: Part = "ffn"
    units: int = 1
    producers: tuple[Producer, ...] = ()
    biased: bool = False
    """Whether the dense consumer has a bias."""

    alike: ClassVar[bool] = False
    """Whether every site keeps the same share of its units, because one field of the config says how many."""

    def read(self, store: WeightStore) -> Weights:
        """The consumer's weights [O, I], and the weights of the factors that its inputs are products of."""
        return Weights(store.weight(self), self.index, self.units, self.rows())

    def rows(self) -> tuple[Tensor, ...]:
        """The weights [I, D] of every factor of the consumer's inputs, as they are now.

        Of attention, those of the values; empty if heads cannot be removed.
        """
        if self.part == "ffn":
            return tuple(p.weights_of(span, self.units) for p in self.producers for span in p.spans)
        if not self.producers:
            return ()
        # Queries and keys only weigh the tokens: the consumer's inputs are linear in the values, listed last.
        last = self.producers[-1]
        values = last.weights_of(last.spans[-1], self.units).unflatten(0, (self.units, 1, -1))
        share = self.inputs // (values.shape[2] * self.units)
        # Query heads of a group read the same values: repeat them, so that there is one row for each input.
        return (values.expand(-1, share, -1, -1).flatten(0, 2),)

    @property
    def kind(self) -> str:
        """`attention` or `ffn`."""
        return self.part

    @property
    def weights(self) -> int:
        """Number of parameters in all units."""
        return self.units * self.cost

    @property
    def cost(self) -> int:
        """Number of parameters in one unit: its columns of the consumer and its rows of the producers."""
        rows = 0
        for producer in self.producers:
            rows += sum(span.step for span in producer.spans) * (producer.inputs + producer.biased)
        return self.outputs * self.inputs // self.units + rows
