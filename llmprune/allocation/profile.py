"""User-defined budgets: the sparsity of every block, in a recipe or in a YAML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import yaml

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.budgets import budget_by_block, mean_share
from llmprune.model.widths import Allowed

TOLERANCE = 0.005  # difference allowed between the sparsities of recipe and profile


@dataclass(frozen=True)
class Profile(Allocator):
    """A list of sparsities, one per block, or the path of a YAML file that holds the list."""

    serves: ClassVar = ("weights", "units", "experts")

    blocks: list[float] | str = ""
    """From the first block to the last, each from 0 to less than 1."""

    def __post_init__(self) -> None:
        if isinstance(self.blocks, str):
            # The dataclass is frozen. A saved recipe must hold the numbers, as the file may change.
            object.__setattr__(self, "blocks", _read(self.blocks))
        if not all(isinstance(share, float | int) and 0 <= share < 1 for share in self.blocks):
            raise RequestError("allocation.blocks", "every sparsity must be a number from 0 to less than 1")

    def require_possible(self, anatomy: Anatomy, allowed: Allowed, sparsity: float) -> None:
        """Check that the profile matches the model's number of blocks and the recipe's sparsity."""
        blocks = len(anatomy.blocks)
        if len(self.blocks) != blocks:
            raise RequestError(
                "allocation.blocks",
                f"{len(self.blocks)} sparsities were given for {blocks} blocks; give one per block",
            )
        mean = mean_share(anatomy, self._shares)
        if abs(mean - sparsity) > TOLERANCE:
            raise RequestError(
                "sparsity",
                f"{sparsity:g} was asked, and the profile has {mean:.4g}; set sparsity to that",
            )
        super().require_possible(anatomy, allowed, mean)

    def allocate(self, problem: Problem) -> Allocation:
        """Give each site the sparsity of its block."""
        return Allocation(budget_by_block(problem.anatomy, problem.allowed, self._shares))

    @property
    def _shares(self) -> list[float]:
        """The sparsities, which are no path any more."""
        assert not isinstance(self.blocks, str)
        return self.blocks


def _read(name: str) -> list[float]:
    """Read the list in a YAML file."""
    try:
        found = yaml.safe_load(Path(name).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(
            "allocation.blocks",
            f"{name!r} cannot be read as a YAML file; give the path of a list of sparsities",
        ) from error
    if not isinstance(found, list):
        raise RequestError(
            "allocation.blocks", f"{name} does not hold a list of numbers; give one sparsity per block"
        )
    return found
