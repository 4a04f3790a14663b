"""A config that counts fewer decoder blocks: how many, of which kinds, and which are special."""

from __future__ import annotations

from transformers import PreTrainedConfig

from llmprune.model.anatomy import Anatomy
from llmprune.model.decoder_config import changed, decoder_config
from llmprune.model.shapes import Settings
from llmprune.vocabulary.settings import names_ids

COUNT = "num_hidden_layers"
OF_DECODER = "decoder_layers"  # beside it, where a class could have an encoder too
INDICES = ("mlp_only_layers", "attn_layer_indices", "full_attn_idxs")  # lists of block indices
FIRST = ("max_window_layers", "first_k_dense_replace")  # how many of the first blocks are of one kind


def dense_indices(anatomy: Anatomy) -> list[int]:
    """The index of every block in the dense model, before any pruning removed blocks."""
    return kept_blocks(anatomy) or list(range(len(anatomy.blocks)))


def kept_blocks(anatomy: Anatomy) -> list[int]:
    """The dense model's indices of the blocks that an earlier pruning kept; empty if it removed none."""
    mark = getattr(anatomy.model.config, "llmprune", None) or {}
    return list(mark.get("blocks", ()))


def with_fewer_blocks(settings: Settings, anatomy: Anatomy, kept: list[int]) -> Settings:
    """config.json of a model that keeps some of its blocks.

    Args:
        settings: of the dense model, as a mapping.
        anatomy: of the dense model.
        kept: indices of the blocks that stay, ascending.
    """
    return changed(anatomy.model, settings, lambda own: fewer(own, anatomy, kept))


def fewer(settings: Settings, anatomy: Anatomy, kept: list[int]) -> Settings:
    """The decoder's own settings, with fewer blocks."""
    config, depth = decoder_config(anatomy.model), len(anatomy.blocks)
    names = getattr(type(config), "attribute_map", {})
    found: Settings = {names.get(COUNT, COUNT): len(kept)}
    if settings.get(OF_DECODER) == depth:
        found[OF_DECODER] = len(kept)
    for name, value in settings.items():
        if name in INDICES and isinstance(value, list):
            found[name] = [kept.index(block) for block in value if block in kept]
        elif name in FIRST and isinstance(value, int):
            found[name] = sum(block < value for block in kept)
        elif _per_block(name) and isinstance(value, list) and len(value) == depth:
            found[name] = [value[block] for block in kept]
        elif name == "per_layer_config" and isinstance(value, dict):
            found[name] = {str(n): value[str(block)] for n, block in enumerate(kept) if str(block) in value}
    return settings | _kinds(config, kept) | found


def _per_block(name: str) -> bool:
    """Whether a list in the config, with as many entries as there are blocks, has one for each of them."""
    return name != "architectures" and not names_ids(name)


def _kinds(config: PreTrainedConfig, kept: list[int]) -> Settings:
    """Per-block lists that a config computes from a period, written out: the period no longer holds."""
    found: Settings = {}
    for name in ("layer_types", "no_rope_layers"):
        value = getattr(config, name, None)
        field = getattr(type(config), "attribute_map", {}).get(name, name)
        computed = isinstance(getattr(type(config), field, None), property)
        if not computed and isinstance(value, list | tuple) and len(value) == config.num_hidden_layers:
            found[name] = [value[block] for block in kept]
    return found
