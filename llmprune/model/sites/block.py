"""Whole decoder blocks, or one part of each: what goes passes its input on, and is not written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmprune.errors import RequestError
from llmprune.model import rebuilt
from llmprune.model.anatomy import Anatomy
from llmprune.model.block_site import BlockSite
from llmprune.model.fewer_blocks import FewerBlocks, FewerParts
from llmprune.model.independence import require_own_keys, require_renumberable
from llmprune.model.shapes import Layout, Shapes
from llmprune.model.sites.base import Sites, SizeRequest
from llmprune.model.widths import Allowed, Budget
from llmprune.patterns.blocks import Blocks


@dataclass(frozen=True)
class WholeBlocks(Sites):
    """One site for each decoder block that has what the pattern removes."""

    pattern: Blocks

    changes_sizes: ClassVar = True
    shares: ClassVar = "blocks"

    def find(self, anatomy: Anatomy) -> Iterator[BlockSite]:
        """Every block, in order."""
        part, modules = self.pattern.parts, self._modules(anatomy)
        for number, block in enumerate(anatomy.blocks):
            if part != "all" and not anatomy.has(number, part):
                continue  # an earlier pruning removed it
            path = f"{anatomy.prefix}.{number}"
            going = [block.get_submodule(name) for name in modules] or [block]
            yield BlockSite(
                name=".".join((path, *modules[:1])),
                index=number,
                block=number,
                path=path,
                module=anatomy.module,
                inputs=1,
                outputs=1,
                part="block" if part == "all" else part,
                modules=modules,
                size=sum(p.numel() for module in going for p in module.parameters()),
            )

    def _modules(self, anatomy: Anatomy) -> tuple[str, ...]:
        """The modules of a block that go, by their names in it; empty for the whole block."""
        return () if self.pattern.parts == "all" else anatomy.coupling(self.pattern.parts).modules

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Whole blocks need none; parts need the modelling file."""
        return () if self.pattern.parts == "all" else ("per_layer",)

    def allowed(self, anatomy: Anatomy, asked: SizeRequest) -> Allowed:
        """Refuse what would leave no model; the shares themselves are free.

        Raises:
            RequestError: no block would go, or too many, or the family's blocks depend on one another.
        """
        require_own_keys(anatomy)
        if self.pattern.parts == "all":
            require_renumberable(anatomy)
        else:
            rebuilt.require(anatomy, "remove whole blocks")
        if asked.refits_seams:
            self._require_seams(anatomy)
        candidates = removable(anatomy, self.pattern)
        if self.pattern.remove is not None:
            self._require_listed(anatomy, candidates)
            if asked.refits_seams and max(self.pattern.remove) < len(self.pattern.remove):
                raise RequestError(
                    "repair", "no block before the listed ones is left to refit; use --repair none"
                )
            return {}
        depth = len(anatomy.blocks)
        most = min(len(candidates), depth - 1) if self.pattern.parts == "all" else len(candidates)
        count = round(asked.sparsity * depth)
        if not 1 <= count <= most:
            can = f"{1 / depth:.3g} to {most / depth:.3g}"
            raise RequestError("sparsity", f"{asked.sparsity:g} of {depth} blocks is {count}; ask for {can}")
        return {}

    def _require_seams(self, anatomy: Anatomy) -> None:
        """Refuse to refit where no block goes, or where a block's parts do not end in a linear layer.

        Raises:
            RequestError: it says what is in the way.
        """
        if self.pattern.parts != "all":
            raise RequestError("repair", "span refits the block before removed blocks; use --repair none")
        changed = anatomy.family_row().outputs_change_by
        if changed:
            raise RequestError(
                "repair",
                f"span was asked, and {changed} follows the output layers of a {anatomy.family!r} model; use "
                "--repair none",
            )

    def _require_listed(self, anatomy: Anatomy, candidates: set[int]) -> None:
        listed, depth = self.pattern.remove or [], len(anatomy.blocks)
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
        if missing := set(listed) - candidates:
            raise RequestError(
                "pattern.remove", f"block {min(missing)} has no {self.pattern.parts} any more; leave it out"
            )
        if self.pattern.parts == "all" and len(listed) == depth:
            raise RequestError("pattern.remove", f"all {depth} blocks were asked; leave at least one")

    def sparsity(self, anatomy: Anatomy, asked: SizeRequest) -> float:
        """The share of listed blocks, if there is a list."""
        listed = self.pattern.remove
        return asked.sparsity if listed is None else len(listed) / len(anatomy.blocks)

    def going(self, anatomy: Anatomy, asked: SizeRequest) -> set[int]:
        """Which of them will go is only known where they are listed."""
        if self.pattern.parts != "all":
            return set()
        count = round(asked.sparsity * len(anatomy.blocks))
        return set(self.pattern.remove or sorted(removable(anatomy, self.pattern))[:count])

    def shapes(self, anatomy: Anatomy, asked: SizeRequest, budget: Budget) -> Shapes:
        """Without the blocks, or their parts, whose budget is 1."""
        gone = {site.block for site in anatomy.sites if budget[site.name] > 0.5}
        modules = self._modules(anatomy)
        return (
            FewerParts(anatomy, gone, modules)
            if modules
            else FewerBlocks(anatomy, gone, refits=asked.refits_seams)
        )


def removable(anatomy: Anatomy, pattern: Blocks) -> set[int]:
    """The blocks that a criterion may choose."""
    blocks = {site.block for site in anatomy.sites}
    return blocks - {0, len(anatomy.blocks) - 1} if pattern.keep_ends else blocks
