"""Whole decoder blocks: what goes passes its input on, is not written, and the later ones are renumbered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llmprune.errors import RequestError
from llmprune.methods.base import Weights
from llmprune.model.anatomy import Anatomy
from llmprune.model.depth import dense_indices, require_countable, with_fewer_blocks
from llmprune.model.shapes import Removed, Settings, Shapes
from llmprune.model.site import Site, WeightStore
from llmprune.model.sites.base import Sites, SizeRequest
from llmprune.model.widths import Allowed, Budget
from llmprune.patterns.blocks import Blocks


@dataclass(frozen=True, eq=False)
class BlockSite(Site):
    """One block. It has no matrix: it stays, or goes with all its parameters."""

    size: int = 0

    @property
    def kind(self) -> str:
        """`block`"""
        return "block"

    @property
    def weights(self) -> int:
        """All parameters of the block."""
        return self.size

    def read(self, store: WeightStore) -> Weights:
        """Nothing to see but the block's number."""
        return Weights(torch.ones(1, 1), self.index)

    def write(self, store: WeightStore, weight: Tensor, bias: Tensor | None) -> None:
        """Let a block that goes pass its input on."""
        if not weight.any():
            self.layer.forward = _pass_on


def _require_plain_outputs(anatomy: Anatomy) -> None:
    """Refuse to refit a block whose parts do not end in a linear layer.

    Raises:
        RequestError: it says what follows the layer.
    """
    changed = anatomy.family_row().outputs_change_by
    if changed:
        raise RequestError(
            "repair",
            f"span was asked, and {changed} follows the output layers of a {anatomy.family!r} model; use "
            "--repair none",
        )


def _pass_on(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
    return hidden_states


class FewerBlocks(Shapes):
    """The sizes of a model without some of its blocks.

    Args:
        anatomy: of the dense model.
        gone: the blocks that go.
    """

    def __init__(self, anatomy: Anatomy, gone: set[int]) -> None:
        super().__init__(anatomy)
        self.gone = gone
        self.kept = [block for block in range(len(anatomy.blocks)) if block not in gone]

    def count_removed(self, site: Site, weight: Tensor, keep: Tensor) -> Removed:
        """All parameters of a block, or none."""
        gone = site.block in self.gone
        return {"dropped": site.weights * gone, "zeros": 0, "units": [1, int(not gone)], "shape_after": []}

    def cut_tensors(
        self, block: int, keeps: Mapping[str, Tensor], tensors: dict[str, Tensor], key: Callable[[str], str]
    ) -> dict[str, Tensor]:
        """A block that stays, under its new number; nothing of one that goes."""
        if block in self.gone:
            return {}
        # The checkpoint's prefix may differ from the model's (`transformer.h` without its first word).
        before, after = f".{block}.", f".{self.kept.index(block)}."
        return {_renumbered(name, before, after): tensor for name, tensor in tensors.items()}

    def config(self, settings: Settings) -> Settings:
        """config.json with everything that counts blocks adjusted."""
        return with_fewer_blocks(settings, self.anatomy, self.kept)

    def mark(self) -> Settings:
        """Each block's index in the dense model, beside what an earlier pruning left."""
        indices = dense_indices(self.anatomy)
        return super().mark() | {"blocks": [indices[block] for block in self.kept]}

    def apply(self, keeps: Mapping[str, Tensor], mark: Settings) -> None:
        """Delete the blocks of a model in memory, and renumber the others for their caches."""
        anatomy = self.anatomy
        for name, value in self.config(anatomy.model.config.to_dict()).items():
            if getattr(anatomy.model.config, name, None) != value:
                setattr(anatomy.model.config, name, value)
        anatomy.model.config.llmprune = mark
        for block in sorted(self.gone, reverse=True):
            del anatomy.blocks[block]
        for number, renumbered in enumerate(anatomy.blocks):
            for module in renumbered.modules():
                if hasattr(module, "layer_idx"):
                    setattr(module, "layer_idx", number)  # noqa: B010 - typed as a tensor or a module


@dataclass(frozen=True)
class WholeBlocks(Sites):
    """One site for each decoder block."""

    pattern: Blocks

    changes_sizes: ClassVar = True
    shares: ClassVar = "blocks"

    def find(self, anatomy: Anatomy) -> Iterator[BlockSite]:
        """Every block, in order."""
        for number, block in enumerate(anatomy.blocks):
            path = f"{anatomy.prefix}.{number}"
            size = sum(p.numel() for p in block.parameters())
            yield BlockSite(path, number, number, path, anatomy.module, 1, 1, size=size)

    def allowed(self, anatomy: Anatomy, asked: SizeRequest) -> Allowed:
        """Refuse what would leave no model; the shares themselves are free.

        Raises:
            RequestError: no block would go, or too many, or the family's blocks depend on one another.
        """
        require_countable(anatomy)
        if asked.refits_seams:
            _require_plain_outputs(anatomy)
        depth, ends = len(anatomy.blocks), 2 * self.pattern.keep_ends
        if self.pattern.remove is not None:
            self._require_listed(depth)
            return {}
        count = round(asked.sparsity * depth)
        if not 1 <= count <= depth - max(ends, 1):
            most = (depth - max(ends, 1)) / depth
            raise RequestError(
                "sparsity",
                f"{asked.sparsity:g} of {depth} blocks is {count}; ask for {1 / depth:.3g} to {most:.3g}",
            )
        return {}

    def _require_listed(self, depth: int) -> None:
        listed = self.pattern.remove or []
        if max(listed) >= depth:
            raise RequestError(
                "pattern.remove", f"block {max(listed)} was asked, and the model has 0 to {depth - 1}"
            )
        ends = {0, depth - 1} & set(listed)
        if self.pattern.keep_ends and ends:
            raise RequestError(
                "pattern.remove",
                f"block {min(ends)} is the first or the last; leave it out, or set pattern.keep_ends=false",
            )
        if len(listed) == depth:
            raise RequestError("pattern.remove", f"all {depth} blocks were asked; leave at least one")

    def sparsity(self, anatomy: Anatomy, asked: SizeRequest) -> float:
        """The share of listed blocks, if there is a list."""
        listed = self.pattern.remove
        return asked.sparsity if listed is None else len(listed) / len(anatomy.blocks)

    def shapes(self, anatomy: Anatomy, asked: SizeRequest, budget: Budget) -> FewerBlocks:
        """Without the blocks whose budget is 1."""
        return FewerBlocks(anatomy, {site.block for site in anatomy.sites if budget[site.name] > 0.5})


def budget_without(anatomy: Anatomy, gone: Iterable[int]) -> Budget:
    """The budget that removes some blocks."""
    blocks = set(gone)
    return {site.name: float(site.block in blocks) for site in anatomy.sites}


def _renumbered(name: str, before: str, after: str) -> str:
    """A key with the first such number replaced."""
    return name.replace(before, after, 1)
