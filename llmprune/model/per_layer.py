"""Decoder layers of different sizes, told by the config's `per_layer_config`. Needs transformers only."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel


class LayerConfig:
    """What one layer sees of the model's config: its own sizes, and everything else as it is now."""

    def __init__(self, config: Any, own: dict[str, Any]) -> None:
        self.__dict__.update(_config=config, _own=own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_config", "_own"):  # while being copied, it is still empty
            raise AttributeError(name)
        return self._own[name] if name in self._own else getattr(self._config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._config, name, value)


def shape_layers(model: Any) -> None:
    """Build every decoder layer of a model anew in its own sizes, with the biases that pruning added."""
    config = model.config
    mark = getattr(config, "llmprune", None) or {}
    if mark.get("layout") != "per_layer":
        return
    depth = config.num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    layers = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))
    for index, layer in enumerate(layers):
        if not hasattr(layer, "llmprune_shaped"):  # the trunk has been here before the whole model
            layers[index] = shaped(layer, config, index, mark["biases"])


def shaped(layer: nn.Module, config: Any, index: int, biases: list[str]) -> Any:
    """The layer with this index, in its own sizes and with new weights, where and how `layer` is."""
    sizes = config.per_layer_config[index]
    own = {name: getattr(sizes, name) for name in config.per_layer_attributes or ()}
    made: Any = type(layer)(LayerConfig(config, own), layer_idx=index)
    made.llmprune_shaped = True
    like = next(layer.parameters())
    made.to(like.device, like.dtype).train(layer.training)
    for name in biases:
        linear = made.get_submodule(name)
        outputs = linear.out_features if isinstance(linear, nn.Linear) else linear.nf
        linear.bias = nn.Parameter(linear.weight.new_zeros(outputs))
    return made


class PerLayer(PreTrainedModel):  # type: ignore[misc]
    """Shapes the layers once the model has built them, before its weights are loaded."""

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: but for the sizes, this is transformers' own class, and its checkpoints are converted alike."""
        return False

    def post_init(self) -> None:
        """Run by transformers at the end of a model's construction."""
        shape_layers(self)
        super().post_init()
