"""The sizes of a mixture without some experts: as many in every block, as plain transformers builds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from llmprune.model.anatomy import Anatomy
from llmprune.model.resized import COUNTS, set_size, stated
from llmprune.model.shapes import Layout, Removed, Settings, Shapes, StoredBlock
from llmprune.model.site import Site
from llmprune.model.whole_experts import WholeExperts
from llmprune.model.widths import Counts

NUMBER = re.compile(r"\.experts\.(\d+)\.")  # in the key of an expert that is stored by itself


class FewerExperts(Shapes):
    """`uniform`, and nothing but the count changes in the config.

    Args:
        anatomy: of the dense model; its sites are WholeExperts.
        counts: experts that stay, by the site's name.
    """

    layout: Layout = "uniform"

    def __init__(self, anatomy: Anatomy, counts: Counts) -> None:
        super().__init__(anatomy)
        self.counts = counts

    def count_removed(self, site: Site, weight: Tensor, keep: Tensor) -> Removed:
        """The parameters of the experts that go."""
        assert isinstance(site, WholeExperts)
        count = self.counts[site.name]
        dropped = (site.units - count) * site.cost
        return {"units": [site.units, count], "dropped": dropped, "zeros": 0, "shape_after": [1, count]}

    @property
    def copies(self) -> bool:
        """No weight that stays changes."""
        return True

    @property
    def mtp(self) -> Literal["stay", "shrink"]:
        """One field of the config counts their experts and those of the blocks."""
        return "shrink"

    def cut_stored(self, stored: StoredBlock, keeps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The experts that stay, renumbered where each has its own keys, and routers without the others."""
        prefix, tensors = f"{self.anatomy.prefix}.{stored.number}.", stored.tensors
        for site in self.anatomy.block_sites(stored.number):
            assert isinstance(site, WholeExperts)
            kept = keeps[site.name].nonzero()[:, 0].tolist()
            found = {}
            for key, tensor in tensors.items():
                name, numbered = stored.owner(key).removeprefix(prefix), NUMBER.search(key)
                if not numbered:
                    found[key] = site.cut(name, tensor, kept)
                elif (expert := int(numbered[1])) in kept:
                    found[f"{key[: numbered.start(1)]}{kept.index(expert)}{key[numbered.end(1) :]}"] = tensor
            tensors = found
        return tensors

    def config(self, settings: Settings) -> Settings:
        """config.json with the new count, under each name that the file has for it."""
        return stated(settings, self.anatomy, COUNTS, self._count)

    @property
    def _count(self) -> int:
        """Of every block."""
        (count,) = set(self.counts.values())
        return count

    def apply(self, keeps: Mapping[str, Tensor], mark: Settings) -> None:
        """Set the count of a model in memory, whose blocks were rebuilt while they were pruned."""
        set_size(self.anatomy, COUNTS, self._count)
        self.anatomy.model.config.llmprune = mark
