"""Every site pruned to several levels, on disk, one file for each block: what a search puts together.

Letters used in shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from llmprune.checkpoint.shards import save_atomically
from llmprune.checkpoint.store import Store
from llmprune.model.site import Site
from llmprune.walk.solve import Solved

Level = int
"""Steps by which a site loses more (above 0) or less (below 0) than at the centre of the search."""


class BlockLevels:
    """The levels of one block. Where whole inputs go, only the columns that stay are held."""

    def __init__(self, tensors: dict[str, Tensor] | None = None) -> None:
        self.tensors = tensors or {}

    def add(self, site: Site, level: Level, solved: Solved) -> None:
        """Add one level of a site."""
        key = f"{site.name}:{level}"
        columns = solved.keep.ndim == 1
        self.tensors[f"{key}:weight"] = solved.weight[:, solved.keep] if columns else solved.weight
        if columns:
            self.tensors[f"{key}:keep"] = solved.keep
        if solved.bias is not None:
            self.tensors[f"{key}:bias"] = solved.bias

    def place(self, store: Store, site: Site, level: Level) -> None:
        """Give a resident site the weights of a level."""
        site.write(store, *self._of(site, level))

    def place_expected(self, store: Store, site: Site, kept: dict[Level, float]) -> None:
        """Give it the mean of levels, each weighted by the share that it keeps (Tyr, equation 5).

        The layer is linear, so it then puts out the mean of all levels' outputs.
        """
        total = sum(kept.values())
        parts = [(self._of(site, level), share / total) for level, share in kept.items()]
        weight = sum(matrix.double() * share for (matrix, _), share in parts)
        biases = [bias.double() * share for (_, bias), share in parts if bias is not None]
        assert isinstance(weight, Tensor)
        site.write(store, weight.to(parts[0][0][0].dtype), sum(biases[1:], biases[0]) if biases else None)

    def _of(self, site: Site, level: Level) -> tuple[Tensor, Tensor | None]:
        """The weight [O, I] of a site at a level, and the addition to its bias [O]."""
        key = f"{site.name}:{level}"
        weight, keep = self.tensors[f"{key}:weight"], self.tensors.get(f"{key}:keep")
        if keep is not None:
            columns, weight = weight, weight.new_zeros(len(weight), len(keep))
            weight[:, keep] = columns
        return weight, self.tensors.get(f"{key}:bias")


class Levels:
    """A folder of levels.

    Args:
        folder: created if needed; blocks that it holds from an interrupted run are used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, block: int, levels: BlockLevels) -> None:
        """Write the levels of one block; the file is written as a whole or not at all.

        Raises:
            JobError: the disk is full, or the folder cannot be written.
        """
        save_atomically(levels.tensors, self._file(block))

    def has(self, block: int) -> bool:
        """Whether the levels of a block were written."""
        return self._file(block).is_file()

    def get(self, block: int, only: Container[tuple[str, Level | None]] | None = None) -> BlockLevels:
        """Read the levels of one block, or only those of the given sites, by name, and levels."""
        with safe_open(self._file(block), framework="pt") as file:
            keys = [key for key in file.keys() if only is None or _named(key) in only]  # noqa: SIM118
            return BlockLevels({key: file.get_tensor(key) for key in keys})

    def _file(self, block: int) -> Path:
        return self.folder / f"levels-{block:05d}.safetensors"


def _named(key: str) -> tuple[str, Level]:
    """The site and the level that a tensor belongs to."""
    site, level, _ = key.rsplit(":", 2)
    return site, int(level)
