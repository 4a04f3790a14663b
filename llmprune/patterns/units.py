"""Remove whole channels and whole groups of heads, so that the layers shrink.

Letters used in shapes: O outputs, I inputs, U units of I / U inputs each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from llmprune.patterns.base import Pattern
from llmprune.tensors import ops


@dataclass(frozen=True)
class Units(Pattern):
    """Units compete within their site; the score of a unit is the mean over its inputs."""

    prunes: ClassVar = "units"

    parts: Literal["all", "attention", "ffn"] = "all"
    """Which units may be removed."""

    multiple: Annotated[int, Field(ge=1)] = 64
    """The number of channels kept in a block is a multiple of this, as fast kernels require; 256
    suits the K-quants of llama.cpp."""

    kv_multiple: Annotated[int, Field(ge=1)] = 1
    """The number of key and value heads kept in a block is a multiple of this, as tensor-parallel ranks
    require."""

    @property
    def removed(self) -> str:
        """Name the units: channels, groups of heads, or both."""
        words = {"all": "channels and groups of heads", "ffn": "channels", "attention": "groups of heads"}
        return f"whole {words[self.parts]}"

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """[O, I] or [I] -> bool [I], constant inside a unit; drops round(sparsity * units) units."""
        return keep_units(score, sparsity, units)


def keep_units(score: Tensor, sparsity: float, units: int) -> Tensor:
    """[O, I] or [I] -> bool [I], constant inside a unit; the score of a unit is the mean over its inputs."""
    by_unit = per_input(score).reshape(units, -1).mean(1, keepdim=True).T
    kept = ops.keep_largest(by_unit, round(sparsity * units))[0]
    return kept.repeat_interleave(score.shape[-1] // units)


def per_input(score: Tensor) -> Tensor:
    """Return the importance [I] of inputs, given scores of weights [O, I] or of the inputs themselves."""
    return score if score.ndim == 1 else score.float().mean(0)
