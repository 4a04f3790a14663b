"""Keep N of every M consecutive inputs, such as 2:4, which sparse tensor cores accelerate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.errors import RequestError
from llmprune.patterns.base import Pattern
from llmprune.tensors import ops


@dataclass(frozen=True)
class NofM(Pattern):
    """In a recipe: `2:4` or `2of4`."""

    word: ClassVar = "N:M such as 2:4"

    n: int = 2
    """Weights to keep in each group."""

    m: int = 4
    """Weights in a group."""

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise RequestError(
                "pattern",
                f"{self} keeps {self.n} of every {self.m} weights; N must be at least 1 and less than M",
            )

    @property
    def only_sparsity(self) -> float:
        """1 - N / M"""
        return 1 - self.n / self.m

    @property
    def group(self) -> int:
        """M"""
        return self.m

    @property
    def by_rows(self) -> bool:
        """Whether no weight competes with those of another row."""
        return True

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """[O, I] -> bool [O, I]; the pattern fixes the sparsity, so the argument is ignored."""
        # Rows are contiguous and I is a multiple of M, so a reshape never mixes two rows in one group.
        return ops.keep_largest(score.reshape(-1, self.m), self.m - self.n).reshape(score.shape)

    @classmethod
    def spelled(cls, word: str) -> dict[str, object] | None:
        """`2:4` and `2of4`"""
        found = re.fullmatch(r"(\d+)(?::|of)(\d+)", word)
        return {"n": int(found[1]), "m": int(found[2])} if found else None

    def resolved(self) -> str:
        """`2:4`"""
        return str(self)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"
