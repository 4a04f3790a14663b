"""Whole decoder blocks go, or one part of some: fewer blocks compute, and the KV cache shrinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from llmprune.errors import RequestError
from llmprune.patterns.base import Pattern


@dataclass(frozen=True)
class Blocks(Pattern):
    """A budget of 1 removes a block, and one of 0 keeps it; nothing is chosen inside."""

    prunes: ClassVar = "block"
    method: ClassVar = "whole"

    parts: Literal["all", "attention", "ffn"] = "all"
    """What goes: whole blocks, or only the attention or the feed-forward network of some."""

    remove: list[Annotated[int, Field(strict=True)]] | None = None
    """Remove exactly these blocks, counted from 0, instead of those that a criterion chooses."""

    keep_ends: bool = True
    """Keep the first and the last block, without which few models are of use."""

    def __post_init__(self) -> None:
        asked = self.remove
        if asked is not None and (not asked or len(set(asked)) < len(asked) or min(asked) < 0):
            raise RequestError(
                "pattern.remove", f"{asked} was asked; name each block to remove once, counted from 0"
            )

    @property
    def removed(self) -> str:
        """Name the blocks, or the part that goes."""
        words = {
            "all": "whole decoder blocks",
            "ffn": "feed-forward networks",
            "attention": "attention layers",
        }
        return words.get(self.parts, "whole decoder blocks")

    @property
    def settles_sparsity(self) -> bool:
        """Where blocks are listed."""
        return self.remove is not None

    @property
    def allocation(self) -> str | None:
        """The list, if there is one."""
        return None if self.remove is None else "listed"

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """bool [1]"""
        return torch.tensor([sparsity < 0.5])
