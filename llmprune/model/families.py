"""Which layers shrink together in each model family. No other module names a family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Part = Literal["attention", "ffn"]


@dataclass(frozen=True)
class Coupling:
    """Layers of a block that shrink together."""

    consumer: str
    producers: Mapping[str, str]
    """By name, what its outputs hold in order: queries, keys and values (`q k v`), or channels (`c`). Without
    a space, such as `qq`, one unit has both before the next unit begins."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The module that holds the layers, or the layers where the block itself does."""
        names = (*self.producers, self.consumer)
        around = {name.rpartition(".")[0] for name in names}
        return names if "" in around else tuple(around)


@dataclass(frozen=True)
class Family:
    """The layers that shrink together in one decoder block, and the config fields that hold their sizes."""

    attention: Coupling
    ffn: Coupling
    width: str = "intermediate_size"
    """The config field that holds the number of channels."""

    with_width: Mapping[str, object] = field(default_factory=dict)
    """What else the config must say for that field to hold."""

    heads_fixed_because: str = ""
    """Why heads cannot be removed; empty if they can. The attention then has no producers."""

    outputs_change_by: str = ""
    """What follows the output layers of its parts, before the hidden states: a norm, a factor, or nothing."""

    biases: Mapping[Part, str] = field(default_factory=dict)
    """By part, the config field that gives all its layers a bias, if the model class has one."""

    missing: Mapping[Part, str] = field(default_factory=dict)
    """By part without units, why they could not be derived."""

    unread_in: str = ""
    """An engine whose own class of this family drops the bias of the attention's output without a word."""


_QKV = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v"}
_ATTENTION = Coupling("self_attn.o_proj", _QKV)
_GATED = Coupling("mlp.down_proj", {"mlp.gate_proj": "c", "mlp.up_proj": "c"})
_FUSED_GATED = Coupling("mlp.down_proj", {"mlp.gate_up_proj": "c c"})
_FOUR_H = Coupling("mlp.dense_4h_to_h", {"mlp.dense_h_to_4h": "c"})
_BIASED = Family(_ATTENTION, _GATED, biases={"attention": "attention_bias", "ffn": "mlp_bias"})
_SCALED = dataclasses.replace(_BIASED, outputs_change_by="a factor")
_HALF_BIASED = Family(_ATTENTION, _GATED, biases={"attention": "attention_bias"})
_UNREAD = dataclasses.replace(_HALF_BIASED, unread_in="vLLM")  # 0.32
_NORMED = dataclasses.replace(_HALF_BIASED, outputs_change_by="a norm")
_UNBIASED = Family(_ATTENTION, _GATED)
_SQUARE = "the attention of its class is as wide as the hidden states"
_SPANNING = "one norm spans all heads of its attention"

FAMILIES: dict[str, Family] = {  # by the config's model_type
    "llama": _BIASED,
    "granite": _SCALED,
    "smollm3": _BIASED,
    "qwen3": _UNREAD,
    "gemma": _UNREAD,
    "gemma2": _NORMED,
    "gemma3_text": _NORMED,
    "cohere2": _UNREAD,
    "mistral": _UNBIASED,
    "qwen2": _UNBIASED,
    "olmo2": Family(
        Coupling("self_attn.o_proj", {}), _GATED, heads_fixed_because=_SPANNING, outputs_change_by="a norm"
    ),
    "lfm2": Family(
        Coupling("self_attn.out_proj", _QKV),
        Coupling("feed_forward.w2", {"feed_forward.w1": "c", "feed_forward.w3": "c"}),
        with_width={"block_auto_adjust_ff_dim": False},
    ),
    "glm4": Family(_ATTENTION, _FUSED_GATED, outputs_change_by="a norm"),
    "phi3": Family(Coupling("self_attn.o_proj", {"self_attn.qkv_proj": "q k v"}), _FUSED_GATED),
    "phi": Family(Coupling("self_attn.dense", _QKV), Coupling("mlp.fc2", {"mlp.fc1": "c"})),
    "starcoder2": Family(_ATTENTION, Coupling("mlp.c_proj", {"mlp.c_fc": "c"})),
    "gpt2": Family(
        Coupling("attn.c_proj", {}),
        Coupling("mlp.c_proj", {"mlp.c_fc": "c"}),
        "n_inner",
        heads_fixed_because=_SQUARE,
    ),
    "gpt_neox": Family(Coupling("attention.dense", {}), _FOUR_H, heads_fixed_because=_SQUARE),
    "opt": Family(
        Coupling("self_attn.out_proj", {}),
        Coupling("fc2", {"fc1": "c"}),
        "ffn_dim",
        heads_fixed_because=_SQUARE,
    ),
    "falcon": Family(
        Coupling("self_attention.dense", {}), _FOUR_H, "ffn_hidden_size", heads_fixed_because=_SQUARE
    ),
}

# The module of mlx-lm that builds a family's blocks, any bias aside.
MLX = {"llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "qwen3"}
