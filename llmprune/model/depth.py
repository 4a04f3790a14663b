"""A config that counts fewer decoder blocks: how many, of which kinds, and which are special."""

from __future__ import annotations

from transformers import PreTrainedConfig

from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.shapes import Settings

COUNT = "num_hidden_layers"
INDICES = ("mlp_only_layers",)  # lists of block indices
FIRST = ("max_window_layers", "first_k_dense_replace")  # how many of the first blocks are of one kind
SHARING = ("num_kv_shared_layers",)  # later blocks read the keys and values of earlier ones
PERIODS = ("sliding_window_pattern", "no_rope_layer_interval", "full_attention_interval")


def dense_indices(anatomy: Anatomy) -> list[int]:
    """The index of every block in the dense model, before any pruning removed blocks."""
    return kept_blocks(anatomy) or list(range(len(anatomy.blocks)))


def kept_blocks(anatomy: Anatomy) -> list[int]:
    """The dense model's indices of the blocks that an earlier pruning kept; empty if it removed none."""
    mark = getattr(anatomy.model.config, "llmprune", None) or {}
    return list(mark.get("blocks", ()))


def require_countable(anatomy: Anatomy) -> None:
    """Refuse families whose blocks cannot be removed one by one.

    Raises:
        RequestError: it says why.
    """
    config = _text(anatomy)
    for field in SHARING:
        if getattr(config, field, 0):
            raise RequestError(
                "pattern",
                f"{getattr(config, field)} blocks of this {anatomy.family!r} model share the keys and values "
                "of others, so that none can be removed by itself; prune units instead",
            )


def with_fewer_blocks(settings: Settings, anatomy: Anatomy, kept: list[int]) -> Settings:
    """config.json of a model that keeps some of its blocks.

    Args:
        settings: of the dense model, as a mapping.
        anatomy: of the dense model.
        kept: indices of the blocks that stay, ascending.
    """
    config, depth = _text(anatomy), len(anatomy.blocks)
    names = getattr(type(config), "attribute_map", {})
    found: Settings = {names.get(COUNT, COUNT): len(kept)}
    for name, value in settings.items():
        if name in INDICES and isinstance(value, list):
            found[name] = [kept.index(block) for block in value if block in kept]
        elif name in FIRST and isinstance(value, int):
            found[name] = sum(block < value for block in kept)
        elif isinstance(value, list) and len(value) == depth:  # one entry per block, such as layer_types
            found[name] = [value[block] for block in kept]
        elif name == "per_layer_config" and isinstance(value, dict):
            found[name] = {str(n): value[str(block)] for n, block in enumerate(kept) if str(block) in value}
    return settings | _kinds(config, kept) | found


def _kinds(config: PreTrainedConfig, kept: list[int]) -> Settings:
    """Per-block lists that a config computes from a period, written out: the period no longer holds."""
    found: Settings = {}
    for name in ("layer_types", "no_rope_layers"):
        value = getattr(config, name, None)
        computed = isinstance(getattr(type(config), name, None), property)
        if not computed and isinstance(value, list | tuple) and len(value) == config.num_hidden_layers:
            found[name] = [value[block] for block in kept]
    return found


def _text(anatomy: Anatomy) -> PreTrainedConfig:
    """The config of the decoder."""
    return anatomy.model.config.get_text_config(decoder=True)
