"""Which layers of a block shrink together, found out from the model's class where no row says so.

Three steps, none of which reads a weight of the model:

1. Build the class, without memory, with two values of a config field, and compare all shapes. The field
   counts units if nothing but layers of the blocks follows it, each in proportion.
2. The layer whose inputs follow is the consumer; those whose outputs follow produce them.
3. Fill the module around these layers with random weights in the larger size. Set the consumer's columns of
   some units to zero there, cut the same units out into the smaller size, and run both. Only if the outputs
   agree are these the units: a norm over all of them, or units in another order, fail here.

Letters used in shapes: T tokens, D hidden size, R features of a head that are rotated.
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmprune.errors import one_line
from llmprune.model.families import Coupling, Family, Part
from llmprune.model.twins import Compared, Elsewhere, NotDerived, Twins
from llmprune.model.unit_site import Span, sizes, spans_of

LARGE, SMALL = 24, 16  # channels of the two models that are compared
TOKENS = 5
UNKNOWN = "an operation that is not known"
NOTHING = Coupling("", {})


def family(model: PreTrainedModel, blocks: str) -> Family:
    """The row of a family that has none; a part whose units cannot be proved has a reason instead.

    Args:
        model: of that family.
        blocks: the name of its list of blocks.
    """
    twins = Twins(model, blocks)
    missing: dict[Part, str] = {}
    width, ffn, attention = "", NOTHING, NOTHING
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            width, ffn = channels(twins)
        except NotDerived as error:
            missing["ffn"] = str(error)
        try:
            attention = heads(twins)
        except NotDerived as error:
            missing["attention"] = str(error)
    parts: dict[Part, Coupling] = {"ffn": ffn, "attention": attention}
    biases = {part: field for part, coupling in parts.items() if (field := _bias_field(twins, coupling))}
    return Family(attention, ffn, width, outputs_change_by=UNKNOWN, biases=biases, missing=missing)


def channels(twins: Twins) -> tuple[str, Coupling]:
    """The config field that counts the channels of the feed-forward network, and its layers."""
    found: dict[str, Coupling] = {}
    why = "no field of its config counts them alone"
    for field, value in twins.widths():
        try:
            both = twins.compared({field: value(LARGE)}, {field: value(SMALL)})
            consumer, outputs = both.layers(LARGE, SMALL)
            if both.inputs(consumer) != LARGE:
                raise NotDerived(f"{consumer} has {both.inputs(consumer)} inputs where it is {LARGE}")
            proof = Proof(both, consumer, outputs, (LARGE, SMALL), 1, twins.rotated)
            found[field] = proof.coupling({1: ("c",), 2: ("c c", "cc")})
        except Elsewhere:
            continue
        except NotDerived as error:
            why = f"{field}: {error}"
    if not found:
        raise NotDerived(why)
    # More than one where a model has dense networks and a shared expert, or adapters.
    field = max(found, key=lambda field: twins.weights(found[field].consumer))
    return field, found[field]


def heads(twins: Twins) -> Coupling:
    """The layers of the attention, with one group of heads for each key and value head."""
    count = twins.own.get("num_attention_heads")
    if not isinstance(count, int):
        raise NotDerived("its config has no num_attention_heads")
    share, size = count // (twins.own.get("num_key_value_heads") or count), twins.head_dim

    def values(groups: int) -> dict[str, object]:
        return {"num_attention_heads": share * groups, "num_key_value_heads": groups, "head_dim": size}

    try:
        both = twins.compared(values(2), values(1))
    except Elsewhere as error:
        raise NotDerived("no size of its attention alone follows the number of heads") from error
    consumer, outputs = both.layers(2, 1)
    queries = share * size
    if both.inputs(consumer) != 2 * queries:
        raise NotDerived(f"{consumer} has {both.inputs(consumer)} inputs for {2 * share} heads of {size}")
    orders: dict[int, tuple[str, ...]] = {size: ("k",), queries: ("q",), 2 * queries: ("q q", "qq")}
    orders[queries + 2 * size] = (*orders.get(queries + 2 * size, ()), "q k v")
    proof = Proof(both, consumer, outputs, (2, 1), share, twins.rotated)
    return proof.values_last(proof.coupling(orders))


@dataclass
class Proof:
    """The module around layers that shrink together, in two sizes and filled with random weights."""

    both: Compared
    consumer: str
    outputs: dict[str, int]
    """By producer, those of the larger model."""

    units: tuple[int, int]
    """Of the larger and of the smaller model."""

    share: int
    """Query heads for each key and value head."""

    rotated: int
    """R."""

    def __post_init__(self) -> None:
        paths = zip(*(name.split(".")[:-1] for name in (self.consumer, *self.outputs)), strict=False)
        shared = itertools.takewhile(lambda words: len(set(words)) == 1, paths)
        # Empty where the block itself holds them, which is then run as a whole.
        self.around = "".join(f"{words[0]}." for words in shared)
        blocks = (self.both.larger, self.both.smaller)
        self.larger, self.smaller = (_filled(b.get_submodule(self.around.rstrip("."))) for b in blocks)
        self.x = torch.randn(1, TOKENS, sizes(self._layer(next(iter(self.outputs))))[1])

    def coupling(self, orders: dict[int, tuple[str, ...]]) -> Coupling:
        """The order of the producers' outputs in which cut units and zeroed ones give the same.

        Args:
            orders: those to try, by how many outputs of a producer belong to one unit.
        """
        large, small = self.units
        kept = torch.tensor([unit for unit in range(large) if unit % 3])[-small:]
        weight, at = self._columns()
        weight.index_fill_(at, self._spans("q")[0].rows(torch.arange(0, large, 3)), 0)
        expected = self._run(self.larger, self.x)
        close = 1e-4 * float(expected.abs().max())
        for contents in itertools.product(*(orders.get(n // large, ()) for n in self.outputs.values())):
            found = Coupling(self.consumer, dict(zip(self.outputs, contents, strict=True)))
            self._cut(found, kept)
            if float((self._run(self.smaller, self.x) - expected).abs().max()) <= close > 0:
                return found
        raise NotDerived(f"a unit of {self.consumer} that is zero and one that is cut give different outputs")

    def values_last(self, found: Coupling) -> Coupling:
        """The same, with the layer that computes the values last: without them, the input does not matter."""
        for name, contents in found.producers.items():
            layer, span = self._layer(name), self._spans(contents)[-1]
            before = {key: value.clone() for key, value in layer.state_dict().items()}
            rows = span.rows(torch.arange(self.units[0]))
            for key, parameter in layer.named_parameters():
                parameter.index_fill_(int(key == "weight" and sizes(layer)[2]), rows, 0)
            outputs = self._run(self.larger, self.x), self._run(self.larger, self.x.flip(1))
            layer.load_state_dict(before)
            if torch.equal(*outputs):
                others = {other: order for other, order in found.producers.items() if other != name}
                return Coupling(found.consumer, {**others, name: "v" if len(contents) == 1 else contents})
        raise NotDerived(f"no layer computes the values of {self.consumer} alone")

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        """The output [1, T, D] of the module, with position embeddings [1, T, R] made up for the purpose."""
        angles = torch.linspace(0, 3, TOKENS * self.rotated).reshape(1, TOKENS, self.rotated)
        taken = inspect.signature(module.forward).parameters
        offered: dict[str, object] = {"position_ids": torch.arange(TOKENS)[None], "attention_mask": None}
        why: Exception | None = None
        # Rotations are given as two tensors, or as one of complex numbers.
        turns = torch.polar(torch.ones_like(angles), angles)[..., ::2]
        for rotation in ((angles.cos(), angles.sin()), turns):
            offered["position_embeddings"] = rotation
            try:
                output = module(x, **{name: value for name, value in offered.items() if name in taken})
            except Exception as error:  # a module that wants more raises any type
                why = why or error
            else:
                found: Tensor = output[0] if isinstance(output, tuple) else output
                return found
        raise NotDerived(f"its {type(module).__name__} cannot be run alone: {one_line(why)}") from why

    def _layer(self, name: str) -> nn.Module:
        return self.larger.get_submodule(name.removeprefix(self.around))

    def _columns(self) -> tuple[Tensor, int]:
        """The consumer's weight, and the axis of its inputs."""
        layer = self._layer(self.consumer)
        return layer.get_parameter("weight"), int(not sizes(layer)[2])

    def _spans(self, contents: str) -> tuple[Span, ...]:
        return spans_of(contents, self.units[0], self.both.inputs(self.consumer) // self.units[0], self.share)

    def _cut(self, coupling: Coupling, kept: Tensor) -> None:
        """Give the smaller module the weights of the larger one, without the other units."""
        state = dict(self.larger.state_dict())
        for name, contents in coupling.producers.items():
            rows = torch.cat([span.rows(kept) for span in self._spans(contents)])
            for key in self._layer(name).state_dict():
                whole = f"{name}.{key}".removeprefix(self.around)
                axis = int(key == "weight" and sizes(self._layer(name))[2])
                state[whole] = state[whole].index_select(axis, rows)
        weight, axis = self._columns()
        key = f"{self.consumer}.weight".removeprefix(self.around)
        state[key] = weight.index_select(axis, self._spans("q")[0].rows(kept))
        self.smaller.load_state_dict(state)
        for name, buffer in self.smaller.named_buffers():
            buffer.copy_(self.larger.get_buffer(name))


def _filled(module: nn.Module) -> nn.Module:
    """A module that has no memory, with random weights."""
    filled = module.to_empty(device="cpu").float()
    for tensor in (*filled.parameters(), *filled.buffers()):
        tensor.normal_(std=0.3) if tensor.is_floating_point() else tensor.zero_()
    return filled


def _bias_field(twins: Twins, coupling: Coupling) -> str | None:
    """The config field that gives the layers of a part, and no others, a bias."""
    layers = {coupling.consumer, *coupling.producers}
    for field, value in twins.own.items():
        if coupling.consumer and value is False and "bias" in field and twins.biased_by(field) == layers:
            return field
    return None
