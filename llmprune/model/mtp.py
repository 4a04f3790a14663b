"""Heads for multi-token prediction: blocks behind the decoder's own that transformers does not build.

Engines draft with them. Each is like a block of the decoder, its twin, behind a projection of what enters it.
The same fields of the config give the width and the experts of both.

Letters used in shapes: D hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from llmprune.model.anatomy import Anatomy

COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
APART = re.compile(r"(^|\.)mtp[._]")
STEM = re.compile(r"(?P<root>(?:.*?\.)?)[^.]+\.(?P<number>\d+)\.")  # of the keys of one block
PROJECTIONS = ("eh_proj", "fc")
NORMS = (
    ("enorm", "pre_fc_norm_embedding"),
    ("hnorm", "pre_fc_norm_hidden"),
    ("shared_head.norm", "norm", "final_layernorm"),
)
Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Head:
    """One such head, by its keys in the checkpoint."""

    stem: str
    """What its keys begin with."""

    twin: int
    """The last block of the decoder that has the same tensors."""

    like: str
    """What the keys of the twin begin with."""

    tails: frozenset[str]
    """What the keys of both end with; what else the head has is around its block."""

    projection: str
    """[D, 2 D], of the next token's embedding and the state before it.

    DeepSeek-V3 (arXiv:2412.19437, equation 21) names the state first; its files and Qwen3-Next's do not.
    """

    norms: tuple[str, ...]
    """[D], of the embedding, of the state, and of what the head puts out."""

    def as_twin(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """What stands under the keys of its block, under those of the twin."""
        return {self.like + tail: tensors[self.stem + tail] for tail in self.tails}

    def owns(self, key: str) -> bool:
        """Whether a key is one of its block's."""
        return key.startswith(self.stem) and key.removeprefix(self.stem) in self.tails

    def as_itself(self, key: str) -> str:
        """Its own key for one of the twin's."""
        return self.stem + key.removeprefix(self.like)


def keys_of(anatomy: Anatomy, keys: Iterable[str]) -> list[str]:
    """Those of a checkpoint's keys that belong to such heads."""
    return [key for key in keys if APART.search(key) or _number(anatomy, key) >= len(anatomy.blocks)]


def heads(width: int, shapes: Mapping[str, Shape], blocks: Sequence[Mapping[str, Shape]]) -> list[Head]:
    """The heads of a checkpoint in order; none if one of them has no twin, or other surroundings.

    Args:
        width: D.
        shapes: of all tensors of the heads, by their keys.
        blocks: the same of every block of the decoder.
    """
    stems = {found[0]: int(found["number"]) for key in shapes if (found := STEM.match(key))}
    made = [_head(stem, width, shapes, blocks) for stem in sorted(stems, key=stems.__getitem__)]
    return [head for head in made if head] if all(made) else []


def _head(
    stem: str, width: int, shapes: Mapping[str, Shape], blocks: Sequence[Mapping[str, Shape]]
) -> Head | None:
    """The head whose keys begin so."""
    own = {key.removeprefix(stem): shape for key, shape in shapes.items() if key.startswith(stem)}
    there = {key for key, shape in shapes.items() if shape in ((width,), (width, 2 * width))}
    around = [_around(stem, names, there) for names in (PROJECTIONS, *NORMS)]
    for twin, block in reversed([*enumerate(blocks)]):
        like = _stem(next(iter(block)))[0]
        tails = {key.removeprefix(like): shape for key, shape in block.items()}
        if tails.items() <= own.items() and None not in around:
            projection, *norms = map(str, around)
            return Head(stem, twin, like, frozenset(tails), projection, tuple(norms))
    return None


def _stem(key: str) -> re.Match[str]:
    """The stem of a key inside a block."""
    found = STEM.match(key)
    assert found, "blocks are numbered"
    return found


def _around(stem: str, names: Iterable[str], keys: set[str]) -> str | None:
    """The key of a weight beside the block of a head, or around all heads, by the first of its names."""
    places = (stem, _stem(stem)["root"])
    every = (f"{place}{name}.weight" for place in places for name in names)
    return next((key for key in every if key in keys), None)


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
