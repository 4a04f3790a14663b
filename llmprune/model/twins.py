"""Which shapes of a model's class follow a config field: build it twice, without memory, and compare."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmprune.errors import one_line
from llmprune.model.decoder_config import changed, decoder_config
from llmprune.model.unit_site import sizes

NOT_SET = ("inner", "intermediate", "ffn")  # words in the name of a width that may be None
OF_LAYERS = ("llmprune", "per_layer_config", "allow_global_per_layer_attribute_access")


class NotDerived(Exception):
    """Why the units of a part cannot be derived, in a clause."""


class Elsewhere(NotDerived):
    """A config field sets more than sizes inside the blocks, so it counts no units."""


class Twins:
    """Builds a model's class on the meta device, with other values in its decoder's config.

    Args:
        model: of that class.
        blocks: the name of its list of blocks.
    """

    def __init__(self, model: PreTrainedModel, blocks: str) -> None:
        self.model, self.blocks = model, blocks
        self.settings = _without(model.config.to_dict())
        self.decoder = decoder_config(model)
        self.own: dict[str, Any] = _without(self.decoder.to_dict())

    def widths(self) -> Iterator[tuple[str, Callable[[int], object]]]:
        """The config fields that may hold a width, each with what turns a number into its value."""
        inside = self.model.get_submodule(self.blocks).modules()
        inputs = {sizes(layer)[1] for layer in inside if isinstance(layer, nn.Linear | Conv1D)}
        for field, value in self.own.items():
            if isinstance(value, list) and value and all(type(n) is int and n in inputs for n in value):
                yield field, partial(_repeated, len(value))
            elif value in inputs if type(value) is int else value is None and _names_width(field):
                yield field, _same

    @property
    def head_dim(self) -> int:
        """The size of a head of the attention."""
        heads = getattr(self.decoder, "num_attention_heads", 1) or 1
        return int(self.own.get("head_dim") or self.decoder.hidden_size // heads)

    @property
    def rotated(self) -> int:
        """The features of a head that position embeddings rotate."""
        rope = self.own.get("rope_parameters") or {}
        factor = rope.get("partial_rotary_factor") or self.own.get("partial_rotary_factor") or 1.0
        return int(self.head_dim * factor)

    def built(self, values: dict[str, object]) -> PreTrainedModel:
        """The model with other values."""
        for field in values:
            known = getattr(type(self.decoder), field, None)
            if isinstance(known, property) and known.fset is None:
                raise NotDerived(f"its config computes {field}")
        settings = changed(self.model, copy.deepcopy(self.settings), lambda own: own | values)
        try:
            with torch.device("meta"):
                return type(self.model)(type(self.model.config).from_dict(settings)).eval()
        except Exception as error:  # the checks of a config, and classes, raise many types
            raise NotDerived(f"its class does not take {values}: {one_line(error)}") from error

    def compared(self, large: dict[str, object], small: dict[str, object]) -> Compared:
        """What follows in the blocks, if nothing else does and all blocks that follow are alike."""
        larger, smaller = self.built(large), self.built(small)
        after = {name: p.shape for name, p in smaller.named_parameters()}
        follows: dict[str, dict[str, tuple[torch.Size, torch.Size]]] = {}
        for name, parameter in larger.named_parameters():
            if after.get(name) == parameter.shape:
                continue
            if name not in after or not name.startswith(f"{self.blocks}."):
                raise Elsewhere(f"{name} follows")
            block, _, inner = name.removeprefix(f"{self.blocks}.").partition(".")
            follows.setdefault(block, {})[inner] = parameter.shape, after[name]
        if not follows:
            raise Elsewhere("no size follows")
        first = next(iter(follows))
        if any(one != follows[first] for one in follows.values()):
            raise NotDerived("the blocks follow differently")
        tied = getattr(larger, "all_tied_weights_keys", {})
        names = {f"{self.blocks}.{number}.{inner}" for number, found in follows.items() for inner in found}
        if shared := {*tied, *tied.values()} & names:
            raise NotDerived(f"blocks share {min(shared)}")
        block = f"{self.blocks}.{first}"
        return Compared(list(follows[first]), larger.get_submodule(block), smaller.get_submodule(block))

    def weights(self, layer: str) -> int:
        """The weights of a layer, in all blocks that have it."""
        begins, ends = f"{self.blocks}.", f".{layer}.weight"
        named = self.model.named_parameters()
        return sum(p.numel() for name, p in named if name.startswith(begins) and name.endswith(ends))

    def biased_by(self, field: str) -> set[str] | None:
        """The layers of a block that a config field gives a bias; None where it gives one to others too."""
        try:
            names = {name for name, _ in self.built({field: True}).named_parameters()}
        except NotDerived:
            return None
        found = set()
        for name in names - {name for name, _ in self.built({}).named_parameters()}:
            layer, _, leaf = name.removeprefix(f"{self.blocks}.").partition(".")[2].rpartition(".")
            if not name.startswith(f"{self.blocks}.") or leaf != "bias":
                return None
            found.add(layer)
        return found


@dataclass
class Compared:
    """What follows a config field in a block, and the first block that does, as two models have it."""

    follows: list[str]
    """Parameters, by their names in the block."""

    larger: nn.Module
    smaller: nn.Module

    def inputs(self, layer: str) -> int:
        """The inputs of a layer of the larger model."""
        return sizes(self.larger.get_submodule(layer))[1]

    def layers(self, large: int, small: int) -> tuple[str, dict[str, int]]:
        """The consumer, and the producers with their outputs in the larger model, in the order of modules.

        Args:
            large: units of the larger model.
            small: units of the smaller one.
        """
        consumers, producers = [], {}
        for name in self.follows:
            layer, _, leaf = name.rpartition(".")
            before, after = (block.get_submodule(layer) for block in (self.larger, self.smaller))
            if leaf not in ("weight", "bias") or not isinstance(before, nn.Linear | Conv1D):
                raise NotDerived(f"{name} follows")
            if leaf == "bias":
                continue  # its weight follows too, and says how
            (out, into, _), (fewer_out, fewer_into, _) = sizes(before), sizes(after)
            if out == fewer_out and into * small == fewer_into * large:
                consumers.append(layer)
            elif into == fewer_into and out * small == fewer_out * large:
                producers[layer] = out
            else:
                raise NotDerived(f"{name} does not follow in proportion")
        if len(consumers) != 1 or not producers:
            raise NotDerived(f"{len(consumers)} layers read and {len(producers)} compute what it counts")
        return consumers[0], producers


def following(model: PreTrainedModel, values: dict[str, object]) -> set[str] | None:
    """The tensors of a model whose shapes follow config fields; None where its class refuses such values."""
    try:
        other = Twins(model, "").built(values)
    except NotDerived:
        return None
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    return {name for name, tensor in model.state_dict().items() if shapes.get(name) != tensor.shape}


def _names_width(field: str) -> bool:
    return any(word in field for word in NOT_SET)


def _same(width: int) -> int:
    return width


def _repeated(count: int, width: int) -> list[int]:
    return [width] * count


def _without(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what an earlier pruning says of single layers."""
    return {name: value for name, value in settings.items() if name not in OF_LAYERS}
