"""Heads for multi-token prediction: blocks behind the decoder's own that transformers does not build.

Engines draft with them. The same fields of the config give their width and their experts, so a model that
changes these goes without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from llmprune.model.anatomy import Anatomy

COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
APART = re.compile(r"(^|\.)mtp\.")


def keys_of(anatomy: Anatomy, keys: Iterable[str]) -> list[str]:
    """Those of a checkpoint's keys that belong to such heads."""
    return [key for key in keys if APART.search(key) or _number(anatomy, key) >= len(anatomy.blocks)]


def renumbered(anatomy: Anatomy, tensors: Mapping[str, Tensor], gone: int) -> dict[str, Tensor]:
    """Tensors outside the decoder's blocks, with the numbers of heads that follow these lowered by `gone`."""
    found = {}
    for key, tensor in tensors.items():
        number = _number(anatomy, key)
        behind = number >= len(anatomy.blocks)
        found[key.replace(f".{number}.", f".{number - gone}.", 1) if behind else key] = tensor
    return found


def _number(anatomy: Anatomy, key: str) -> int:
    """The number of the block that a key belongs to, or -1."""
    blocks = re.escape(anatomy.prefix.rpartition(".")[2])
    found = re.search(rf"(?:^|\.){blocks}\.(\d+)\.", key)
    return int(found[1]) if found else -1
