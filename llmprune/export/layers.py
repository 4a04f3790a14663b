"""A finished folder as its exporters see it: the sizes of every block, and its tensors, none of them read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from llmprune.checkpoint import source
from llmprune.checkpoint.shards import Stored

BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
EXPERT = re.compile(r"(model\.layers\.(\d+)\..*\.experts)\.(\d+)\.(.+)")
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True)
class Layers:
    """A checkpoint in a folder."""

    folder: Path
    config: dict[str, Any]
    """Every field of its config, with transformers' defaults."""

    own: list[dict[str, Any]]
    """What differs from it, by block."""

    tensors: dict[str, Stored]

    @property
    def family(self) -> str:
        """transformers' model type."""
        return str(self.config["model_type"])

    def sizes(self, field: str) -> list[int]:
        """One field of the config for every block."""
        return [int(own.get(field, self.config[field])) for own in self.own]

    @property
    def heads(self) -> list[int]:
        """Query heads of every block."""
        return self.sizes("num_attention_heads")

    @property
    def kv(self) -> list[int]:
        """Key and value heads of every block."""
        return self.sizes("num_key_value_heads")

    @property
    def width(self) -> list[int]:
        """Channels of every block's feed-forward network."""
        return self.sizes("intermediate_size")

    @property
    def uneven(self) -> bool:
        """Whether blocks differ in size."""
        return any(len({*sizes}) > 1 for sizes in (self.heads, self.kv, self.width, self.experts.values()))

    @property
    def experts(self) -> dict[int, int]:
        """How many experts each block has, of those that have some."""
        found: dict[int, set[str]] = {}
        for key in self.tensors:
            if expert := EXPERT.fullmatch(key):
                found.setdefault(int(expert[2]), set()).add(expert[3])
        return {block: len(experts) for block, experts in found.items()}

    @property
    def head_size(self) -> int:
        """Entries of a head."""
        found = self.config.get("head_dim")
        return int(found or self.config["hidden_size"] // self.config["num_attention_heads"])

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return "lm_head.weight" not in self.tensors

    @property
    def window(self) -> int:
        """Tokens that attention reaches, where that is less than the context; else 0."""
        window = self.config.get("sliding_window") or 0
        used = self.config.get("use_sliding_window", True)
        return window if used and window < self.config["max_position_embeddings"] else 0

    @cached_property
    def biases(self) -> set[str]:
        """Layers with a bias that is not zero throughout, by their last name; fused ones by their parts'."""
        found: set[str] = set()
        for key in self.tensors:
            name = key.rpartition(".")[0].rpartition(".")[2]
            if key.endswith(".bias") and not self.is_zero(key):
                found |= set(FUSED.get(name, (name,)))
        return found

    def is_zero(self, key: str) -> bool:
        """Whether a small tensor is zero throughout."""
        return not self.tensors[key].read().any()

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        with safe_open(self.tensors[key].file, framework="pt") as shard:
            return tuple(shard.get_slice(self.tensors[key].key).get_shape())

    def read(self, key: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or some of its rows, in float32."""
        return self.tensors[key].read()[rows].float()


def read(folder: Path | str) -> Layers:
    """Open a finished folder, or a model of the Hub.

    Raises:
        RequestError: it is none.
    """
    found = source.find(str(folder))
    config = found.config.to_dict()
    config |= {key: value for key, value in found.settings.items() if value is not None}
    own = config.get("per_layer_config") or {}
    count = config.get("num_hidden_layers", 0)  # some families name it otherwise; they have no home
    return Layers(found.folder, config, [own.get(str(block), {}) for block in range(count)], found.tensors)
