"""Tokens that the text hardly uses go: fewer rows of embedding and head, and a tokenizer without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llmprune.patterns.base import Pattern


@dataclass(frozen=True)
class Vocabulary(Pattern):
    """The same rows go from every table of the vocabulary."""

    prunes: ClassVar = "rows"
    method: ClassVar = "frequency"

    size: Annotated[int, Field(ge=1, alias="keep", strict=True)]
    """Rows that stay, rounded down to a multiple of `multiple`; a recipe calls it `keep`."""

    multiple: Annotated[int, Field(ge=1)] = 64
    """The rows that stay are a multiple of this, which fast kernels ask for."""

    @property
    def rows(self) -> int:
        """Rows that stay."""
        return self.size // self.multiple * self.multiple

    @property
    def settles_sparsity(self) -> bool:
        """The number of rows does."""
        return True

    @property
    def removed(self) -> str:
        """Rows of the tables."""
        return "tokens of the vocabulary"

    @property
    def allocation(self) -> str:
        """All tables lose the same share."""
        return "uniform"

    def keep(self, score: Tensor, sparsity: float, units: int = 0) -> Tensor:
        """bool [1]: a table stays; which of its rows do is settled for all tables together."""
        return torch.tensor([True])

    def resolved(self) -> dict[str, Any]:
        """With the recipe's word for the size."""
        return {"name": str(self), "keep": self.size, "multiple": self.multiple}
