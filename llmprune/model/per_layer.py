"""Decoder layers of different sizes, or without some parts, which the config lists in `per_layer_config`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel


class LayerConfig:
    """The config of one layer: its own sizes; everything else is looked up in the model's config."""

    def __init__(self, config: object, own: dict[str, object]) -> None:
        # Not by assignment: `__setattr__` below would send these to the model's config.
        self.__dict__.update(_config=config, _own=own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_config", "_own"):  # a copy in the making is still empty
            raise AttributeError(name)
        return self._own[name] if name in self._own else getattr(self._config, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._config, name, value)  # such as the attention implementation, which all layers share


class Skipped(nn.Module):
    """A removed part of a layer: it adds zero to the hidden states, and holds no weights.

    Args:
        layer_idx: of the layer whose attention it stands for; None for other parts.
    """

    def __init__(self, layer_idx: int | None) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros in the shape of the hidden states [B, T, D]; of an attention, beside no attention weights."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if self.layer_idx is None:
            return torch.zeros_like(hidden)
        for cache in kwargs.values():
            if isinstance(cache, Cache):
                # transformers may count tokens by the keys of this layer: store one number for each token.
                cache.update(hidden[:, None, :, :1], hidden[:, None, :, :1], self.layer_idx)
        return torch.zeros_like(hidden), None


def skip(layer: nn.Module, parts: Iterable[str]) -> None:
    """Remove parts of a layer, given the names of their modules."""
    for name in parts:
        setattr(layer, name, Skipped(getattr(getattr(layer, name), "layer_idx", None)))


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: the largest that has as many modules as there are layers."""
    depth = getattr(model.config, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=nn.ModuleList())


def shape_layers(model: PreTrainedModel) -> None:
    """Rebuild every decoder layer of a model in its own sizes, with the biases that pruning added."""
    config = model.config
    mark = getattr(config, "llmprune", None) or {}
    if mark.get("layout") != "per_layer":
        return
    layers = layers_of(model)
    for index, layer in enumerate(layers):
        if not hasattr(layer, "llmprune_shaped"):  # the trunk's own post_init ran before the whole model's
            layers[index] = shaped(layer, config, index, mark["biases"])


def shaped(layer: nn.Module, config: Any, index: int, biases: list[str]) -> nn.Module:
    """Build layer `index` of a decoder in its own sizes, with new weights; device, dtype and mode are kept.

    What `skip` in the layer's config names is not built: transformers reads the key and leaves it unused.
    """
    sizes = config.per_layer_config[index]
    own = {name: getattr(sizes, name) for name in config.per_layer_attributes or ()}
    made: Any = type(layer)(LayerConfig(config, own), layer_idx=index)
    made.llmprune_shaped = True
    like = next(p for p in layer.parameters() if p.ndim > 1)  # others may be made on another device
    made.to(like.device, like.dtype).train(layer.training)
    for name in biases:
        linear = made.get_submodule(name)
        outputs = linear.out_features if isinstance(linear, nn.Linear) else linear.nf
        linear.bias = nn.Parameter(linear.weight.new_zeros(outputs))
    skip(made, getattr(sizes, "skip", ()))
    built: nn.Module = made
    return built


class PerLayer(PreTrainedModel):  # type: ignore[misc]
    """Shape the layers after the model has built them and before its weights are loaded."""

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False: transformers then converts checkpoints as it does for its own class."""
        return False

    def post_init(self) -> None:
        """Shape the layers; transformers calls this at the end of a model's construction."""
        shape_layers(self)
        super().post_init()
