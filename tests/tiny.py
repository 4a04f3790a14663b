"""Tiny random models, one per family, made on the fly; and a word tokenizer that fits them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llmprune.checkpoint import reader, source
from llmprune.checkpoint.store import Store
from llmprune.model import families
from llmprune.model.sites.base import Sites
from llmprune.model.sites.linear import LinearLayers

VOCABULARY = 128
CONTEXT = 64
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MULTI_HEAD = {"num_key_value_heads": 4}
# What a family needs besides the common sizes; the keys are `model_type`s.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 2},
    "phi": {},
    "phi3": {"tie_word_embeddings": True},
    "olmo2": {},
    "olmo": {},
    "granite": {"attention_multiplier": 1 / 8},  # one over the size of a head, as released ones have
    "smollm3": {},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT, "n_inner": 48},
    "gpt_neox": {**MULTI_HEAD},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT, "n_inner": 48, "rotary_dim": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 3, "n_head": 4},
    "falcon": {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True, "alibi": False},
    "stablelm": {},
    "starcoder2": {"sliding_window": None},
    "cohere2": {"sliding_window": 8, "sliding_window_pattern": 2},
    "glm4": {"head_dim": 8},
    "exaone4": {"sliding_window": 8, "sliding_window_pattern": 2},
    "nemotron": {"head_dim": 8},
}
CUT = sorted(set(FAMILIES) & set(families.FAMILIES))  # whose units a row names
_FOREIGN = (
    "hidden_size",
    "intermediate_size",
    "num_key_value_heads",
    "num_hidden_layers",
    "num_attention_heads",
)


def config(family: str) -> Any:
    """A tiny configuration of a family."""
    own = FAMILIES[family]
    common = {
        k: v for k, v in COMMON.items() if not ("n_layer" in own and k in _FOREIGN and k != "hidden_size")
    }
    if "n_embd" in own:
        common.pop("hidden_size")
        common.pop("max_position_embeddings")
    return AutoConfig.for_model(family, **{**common, **own})


def gemma3n(**more: Any) -> Any:
    """A tiny configuration with per-layer embeddings, whose last blocks can share keys and values."""
    return AutoConfig.for_model(
        "gemma3n_text",
        **{**COMMON, "num_hidden_layers": 4},
        head_dim=8,
        hidden_size_per_layer_input=4,
        laurel_rank=2,
        activation_sparsity_pattern=[0.0] * 4,
        layer_types=["full_attention"] * 4,
        **more,
    )


def model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model, the same each time; its weights are large enough for the layers to matter."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
    ):  # a test draws the same, whoever asks first for a model
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config(family), dtype=torch.float32).eval()
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return made.to(dtype)


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Every word is one of a hundred ids, by its first letters; enough to turn any text into tokens.

    A template such as `<s> $A` puts special tokens around a text, as those of many families do.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<pad>", "<s>", "</s>", "<unk>", *letters, *(a + b for a in "aeionrst" for b in letters[:12])]
    vocabulary = {word: number for number, word in enumerate(words[:VOCABULARY])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix=""))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        special = [(token, vocabulary[token]) for token in words[:4]]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save(family: str, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    """A checkpoint of a tiny model, with its tokenizer."""
    model(family, dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    return folder


def streamed(folder: Path, kind: Sites | None = None) -> Store:
    """A checkpoint whose blocks stay on disk; its sites are linear layers, or those of another kind."""
    found = source.find(str(folder))
    anatomy = reader.blueprint(found, kind or LinearLayers())
    return reader.open_streamed(found, anatomy, torch.float32, torch.device("cpu"))


class Checkpoints:
    """Folders with tiny checkpoints, made when they are first asked for. Not to be written to.

    Args:
        root: where they are made.
        make: makes one in a folder, given its family.
    """

    def __init__(self, root: Path, make: Callable[[str, Path], Path]) -> None:
        self._root, self._make = root, make

    def __call__(self, family: str) -> Path:
        folder = self._root / family
        return folder if folder.exists() else self._make(family, folder)
