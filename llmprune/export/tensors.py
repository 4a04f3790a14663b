"""The tensors of a checkpoint as an architecture of llama.cpp names and orders them, read when written.

Letters used in shapes: O outputs, I inputs, H heads, D entries of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import gguf
import torch
from torch import Tensor
from transformers.core_model_loading import dot_natural_key

from llmprune.errors import RequestError
from llmprune.export.families import TENSOR_ROPE, Home
from llmprune.export.layers import BLOCK, EXPERT, FUSED, Layers

ATTENTION = "self_attn"


@dataclass(frozen=True)
class Part:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """In float32."""

    @property
    def precise(self) -> bool:
        """Whether it stays in float32 whatever is asked: vectors, and the routers of experts."""
        return len(self.shape) == 1 or "ffn_gate_inp" in self.name

    @property
    def in_block(self) -> bool:
        """Whether it belongs to a block, and not to embeddings or head."""
        return self.name.startswith("blk.")


def parts(layers: Layers, home: Home) -> Iterator[Part]:
    """Yield every tensor of the file.

    Raises:
        RequestError: the architecture has no name for one.
    """
    names = gguf.get_tensor_name_map(_arch(home.arch), len(layers.own))
    if (factors := rope_factors(layers)) is not None:
        yield Part("rope_freqs.weight", tuple(factors.shape), lambda: factors)
    for part in _converted(layers, home):
        key = part.name
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise RequestError("model", f"{home.arch} has no name for {key}; use llama.cpp's own converter")
        yield Part(name, part.shape, part.read)


def rope_factors(layers: Layers) -> Tensor | None:
    """What the scaling by a tensor divides every frequency by [D / 2]; None where rope is not scaled so."""
    rope = layers.config.get("rope_parameters") or layers.config.get("rope_scaling") or {}
    if rope.get("rope_type") != TENSOR_ROPE:
        return None
    theta = float(rope.get("rope_theta") or layers.config["rope_theta"])
    size = layers.head_size
    lengths = 2 * torch.pi * theta ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    context = rope["original_max_position_embeddings"]
    low, high = context / rope["low_freq_factor"], context / rope["high_freq_factor"]
    smooth = (context / lengths - rope["low_freq_factor"]) / (
        rope["high_freq_factor"] - rope["low_freq_factor"]
    )
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    factors = torch.where(lengths > low, torch.full_like(lengths, rope["factor"]), between)
    return torch.where(lengths < high, torch.ones_like(lengths), factors).float()


def _converted(layers: Layers, home: Home) -> Iterator[Part]:
    """Yield tensors under transformers' names, split, joined and ordered as the architecture wants them."""
    if _folds(layers, home) and layers.tied:
        embedding = "model.embed_tokens.weight"  # the head is scaled otherwise, so it gets a copy
        head = Part("lm_head.weight", layers.shape(embedding), lambda: layers.read(embedding))
        yield _scaled(layers, home, head)
    joined: dict[str, list[Part]] = {}
    yield from _experts(layers)
    for part in (
        piece for key in layers.tensors if not EXPERT.fullmatch(key) for piece in _split(layers, home, key)
    ):
        found = BLOCK.fullmatch(part.name)
        layer = part.name.rpartition(".")[0].rpartition(".")[2]
        if found and home.neighbours and layer in ("q_proj", "k_proj"):
            block = int(found[1])
            part = _by_neighbours(part, (layers.heads if layer == "q_proj" else layers.kv)[block])
        if layer in FUSED["qkv_proj"] and "qkv" in home.fuses:
            whole = joined.setdefault(part.name.replace(layer, "qkv_proj"), [])
            whole.append(part)
            if len(whole) == len(FUSED["qkv_proj"]):
                yield _joined(part.name.replace(layer, "qkv_proj"), whole)
        else:
            yield _scaled(layers, home, part)


def _experts(layers: Layers) -> Iterator[Part]:
    """The same matrix of all experts of a block as one tensor [E, O, I]."""
    found: dict[str, list[str]] = {}
    for key in sorted(layers.tensors, key=dot_natural_key):
        if expert := EXPERT.fullmatch(key):
            found.setdefault(f"{expert[1]}.{expert[4]}", []).append(key)
    for name, keys in found.items():
        shape = (len(keys), *layers.shape(keys[0]))
        yield Part(name, shape, partial(_stacked, layers, keys))


def _stacked(layers: Layers, keys: list[str]) -> Tensor:
    return torch.stack([layers.read(key) for key in keys])


def _split(layers: Layers, home: Home, key: str) -> Iterator[Part]:
    """A tensor, or the parts of one that transformers fuses and the architecture does not."""
    if key.endswith(".bias") and layers.is_zero(key):
        return
    shape, layer = layers.shape(key), key.rpartition(".")[0].rpartition(".")[2]
    kept_whole = layer not in FUSED or layer.removesuffix("_proj") in home.fuses
    if kept_whole:
        yield Part(key, shape, partial(layers.read, key))
        return
    found = BLOCK.fullmatch(key)
    assert found is not None
    start = 0
    for name, rows in zip(FUSED[layer], _rows(layers, layer, int(found[1])), strict=True):
        read = partial(layers.read, key, slice(start, start + rows))
        yield Part(key.replace(layer, name), (rows, *shape[1:]), read)
        start += rows


def _rows(layers: Layers, layer: str, block: int) -> list[int]:
    """The rows of the parts of a fused layer."""
    if layer == "gate_up_proj":
        return [layers.width[block]] * 2
    queries, keys = layers.heads[block] * layers.head_size, layers.kv[block] * layers.head_size
    return [queries, keys, keys]


def _by_neighbours(part: Part, heads: int) -> Part:
    """Rows [H D, I] in an order in which neighbours rotate together, not the halves of a head."""

    def read() -> Tensor:
        x = part.read()
        return x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)

    return Part(part.name, part.shape, read)


def _joined(name: str, pieces: list[Part]) -> Part:
    """One tensor [O, I] of q, k and v."""
    order = sorted(
        pieces, key=lambda piece: [layer in piece.name for layer in FUSED["qkv_proj"]], reverse=True
    )
    rows = sum(piece.shape[0] for piece in pieces)
    return Part(name, (rows, *pieces[0].shape[1:]), lambda: torch.cat([piece.read() for piece in order]))


def _scaled(layers: Layers, home: Home, part: Part) -> Part:
    """The config's multipliers in the weights, where the architecture has none."""
    if not _folds(layers, home):
        return part
    config, factor = layers.config, 1.0
    if part.name.endswith(("o_proj.weight", "down_proj.weight", "o_proj.bias", "down_proj.bias")):
        factor = config["residual_multiplier"]
    elif "q_proj" in part.name:
        factor = config["attention_multiplier"] * layers.head_size**0.5
    elif "embed_tokens" in part.name:
        factor = config["embedding_multiplier"]
    elif "lm_head" in part.name:
        factor = 1 / config["logits_scaling"]
    return Part(part.name, part.shape, lambda: part.read() * factor)


def _folds(layers: Layers, home: Home) -> bool:
    """Whether multipliers of the config go into the weights."""
    return "residual_multiplier" in layers.config and not home.scales


def _arch(name: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
