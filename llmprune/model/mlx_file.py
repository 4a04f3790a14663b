"""A small file stored with layers of different sizes, by which mlx-lm builds them."""

from __future__ import annotations

from llmprune.model.families import MLX

FILE = "mlx_llmprune.py"
KEY = "model_file"  # of config.json, by which mlx-lm finds it
CODE = '''"""mlx-lm's class of this kind, with blocks of different sizes and the biases that pruning added."""

from dataclasses import dataclass, field, replace

import mlx.core as mx
from mlx_lm.models import {module} as stock

SIZES = ("intermediate_size", "num_attention_heads", "num_key_value_heads")


@dataclass
class ModelArgs(stock.ModelArgs):
    """With what differs from block to block."""

    per_layer_config: dict = field(default_factory=dict)


class Model(stock.Model):
    """Blocks are built again, each in its own sizes."""

    def __init__(self, args):
        super().__init__(args)
        for index, own in args.per_layer_config.items():
            sizes = {{name: own[name] for name in SIZES if name in own}}
            self.model.layers[int(index)] = stock.TransformerBlock(replace(args, **sizes))

    def sanitize(self, weights):
        """Give a bias to every layer that has one in the file."""
        for key, value in weights.items():
            *path, leaf = key.split(".")
            if leaf == "bias":
                part = self
                for name in path:
                    part = part[int(name)] if name.isdigit() else part[name]
                part.bias = mx.zeros_like(value)
        return super().sanitize(weights)
'''


def code(family: str) -> str | None:
    """The code for a family; None where mlx-lm was not tried with it."""
    return CODE.format(module=MLX[family]) if family in MLX else None
