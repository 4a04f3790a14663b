"""Channels inside the experts of a mixture go: each expert chooses its own, and all keep as many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from llmprune.patterns.base import Pattern
from llmprune.patterns.units import keep_units


@dataclass(frozen=True)
class ExpertChannels(Pattern):
    """One field of the config holds the width of all experts, so every block loses the same share."""

    prunes: ClassVar = "expert_channels"

    multiple: Annotated[int, Field(ge=1)] = 64
    """The number of channels kept in an expert is a multiple of this, as fast kernels require."""

    @property
    def allocation(self) -> str:
        """All experts keep as many."""
        return "uniform"

    @property
    def removed(self) -> str:
        """Channels."""
        return "channels inside experts"

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """[O, I] or [I] -> bool [I]; drops round(sparsity * units) channels"""
        return keep_units(score, sparsity, units)
