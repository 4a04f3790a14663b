"""Refuse to remove blocks where the others depend on them, or on how many there are."""

from __future__ import annotations

import torch
from torch import nn

from llmprune.errors import RequestError, first_line
from llmprune.model.anatomy import Anatomy
from llmprune.model.decoder_config import decoder_config
from llmprune.model.depth import with_fewer_blocks
from llmprune.model.site import Site

SHARING = ("num_kv_shared_layers",)  # later blocks read the keys and values of earlier ones
BY_NUMBER = ("scale_attn_by_inverse_layer_idx",)  # flags of blocks that compute with their own number


class _NoSites:
    sample_tokens = 0

    def find(self, anatomy: Anatomy) -> list[Site]:
        return []


def require_own_keys(anatomy: Anatomy) -> None:
    """Refuse families in which blocks read the keys and values of others.

    Raises:
        RequestError: it says how many.
    """
    config = decoder_config(anatomy.model)
    for field in SHARING:
        if getattr(config, field, 0):
            raise RequestError(
                "pattern",
                f"{getattr(config, field)} blocks of this {anatomy.family!r} model share the keys and values "
                "of others, so that none can be removed by itself; prune units instead",
            )


def require_renumberable(anatomy: Anatomy) -> None:
    """Refuse families whose blocks compute something else under another number.

    Raises:
        RequestError: it names what would change.
    """
    config = decoder_config(anatomy.model)
    flag = next((flag for flag in BY_NUMBER if getattr(config, flag, False)), "")
    shared = anatomy.shared_weight
    if why := flag or (shared and f"{shared} is that of another") or _dependence(anatomy):
        raise RequestError(
            "pattern",
            f"the blocks of this {anatomy.family!r} model depend on their number ({why}), so that none can "
            "be removed by itself; prune units instead",
        )


def _dependence(anatomy: Anatomy) -> str:
    """What else changes in a model once its second block is gone; empty if nothing does."""
    every = list(range(len(anatomy.blocks)))
    kept = every[:1] + every[2:]
    try:
        dense, fewer = keeping(anatomy, every), keeping(anatomy, kept)
    except Exception as error:  # a config or a class that such a number does not fit raises any type
        return first_line(error)
    pairs = [(_outside(dense), _outside(fewer))]
    pairs += [
        (_plain(dense.blocks[block]), _plain(fewer.blocks[number])) for number, block in enumerate(kept)
    ]
    for before, after in pairs:
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                return name
    return ""


def _plain(block: nn.Module) -> dict[str, object]:
    """Shapes of a block, and what numbers and words its modules hold, but for the block's own number."""
    found: dict[str, object] = {name: p.shape for name, p in block.named_parameters()}
    for name, module in block.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, int | float | str) and key != "layer_idx":
                found[f"{name}.{key}".strip(".")] = value
    return found


def _outside(anatomy: Anatomy) -> dict[str, object]:
    """The shapes of all parameters outside the blocks."""
    named = anatomy.model.named_parameters()
    return {name: p.shape for name, p in named if not name.startswith(f"{anatomy.prefix}.")}


def keeping(anatomy: Anatomy, kept: list[int]) -> Anatomy:
    """The blueprint of a model that keeps some of its blocks; it has no sites."""
    config = anatomy.model.config
    with torch.device("meta"):
        model = type(anatomy.model)(
            type(config).from_dict(with_fewer_blocks(config.to_dict(), anatomy, kept))
        )
    return Anatomy(model, _NoSites())
