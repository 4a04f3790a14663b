"""One matrix of one expert: a slice of a parameter that holds those of all experts of a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmprune.model.site import Site


@dataclass(frozen=True, eq=False)
class ExpertSite(Site):
    """`layer` is the module that holds all experts; what computes them tells which tokens reach this one."""

    shares_parameter: ClassVar = True

    expert: int = 0

    @property
    def kind(self) -> str:
        """Without the expert's number: `mlp.experts.down_proj`."""
        return self.key.split(f".{self.block}.", 1)[-1]

    def matrix(self, stored: Tensor) -> Tensor:
        """View the expert's slice as a matrix [O, I]."""
        return stored[self.expert].T if self.transposed else stored[self.expert]
