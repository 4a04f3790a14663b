"""Which shapes of holes are allowed: loose weights, N of every M, or whole units.

A pattern turns importance into a keep-mask. It is the only place that knows how weights compete with one
another for survival; methods only say how much each one matters.

Letters used in shapes: O outputs, I inputs, U units of I / U inputs each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from torch import Tensor

from llmprune.plugins import OPTIONS
from llmprune.tensors import ops

Compete = Literal["row", "matrix"]


@dataclass(frozen=True)
class Unstructured:
    """Any weight may go. Weights compete within their output `row`, or within the whole `matrix`."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS
    compete: Compete = "row"

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """[O, I] -> bool [O, I]; drops exactly round(sparsity * n) of the n weights that compete."""
        if self.compete == "row":
            return ops.keep_largest(score, round(sparsity * score.shape[1]))
        return ops.keep_largest_of_all(score, round(sparsity * score.numel()))

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class NofM:
    """Keep `n` of every `m` consecutive inputs: what sparse tensor cores run (2 of 4)."""

    n: int = 2
    m: int = 4

    @property
    def sparsity(self) -> float:
        """The only sparsity this pattern has."""
        return 1 - self.n / self.m

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """[O, I] -> bool [O, I]; the pattern fixes the sparsity, the argument is ignored."""
        return ops.keep_largest(score.reshape(-1, self.m), self.m - self.n).reshape(score.shape)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Units:
    """Whole channels and whole groups of heads go, and the layers shrink."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS
    parts: Literal["all", "attention", "ffn"] = "all"
    """Which units may go."""

    multiple: Annotated[int, Field(ge=1)] = 64
    """The channels that stay in a block are a multiple of this, which fast kernels ask for."""

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """[O, I] or [I] -> bool [I], constant inside a unit; drops round(sparsity * units) of them."""
        by_unit = per_input(score).reshape(units, -1).mean(1, keepdim=True).T
        kept = ops.keep_largest(by_unit, round(sparsity * units))[0]
        return kept.repeat_interleave(score.shape[-1] // units)

    def __str__(self) -> str:
        return "units"


def per_input(score: Tensor) -> Tensor:
    """The importance [I] of inputs, given that of their weights [O, I], or already their own."""
    return score if score.ndim == 1 else score.float().mean(0)


Pattern = Unstructured | NofM | Units


def parse(text: str) -> Pattern:
    """The pattern that a word names: `unstructured`, `units`, or how many of how many stay (`2:4`, `2of4`).

    Raises:
        ValueError: the word names no pattern.
    """
    if text == "unstructured":
        return Unstructured()
    if text == "units":
        return Units()
    found = re.fullmatch(r"(\d+)(?::|of)(\d+)", text)
    if not found:
        raise ValueError(f"no pattern is called {text!r}; allowed: unstructured, units, or N:M such as 2:4")
    n, m = int(found[1]), int(found[2])
    if not 0 < n < m:
        raise ValueError(f"{text} keeps {n} of every {m} weights; N must be at least 1 and less than M")
    return NofM(n, m)
