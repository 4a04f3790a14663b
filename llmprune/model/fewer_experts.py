"""The sizes of a mixture without some experts: as many in every block, as plain transformers builds it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from llmprune.model.anatomy import Anatomy
from llmprune.model.shapes import Removed, Settings, Shapes
from llmprune.model.site import Site
from llmprune.model.whole_experts import COUNTS, WholeExperts, with_count

NUMBER = re.compile(r"\.experts\.(\d+)\.")  # in the key of an expert that is stored by itself


class FewerExperts(Shapes):
    """`uniform`, and nothing but the count changes in the config.

    Args:
        anatomy: of the dense model; its sites are WholeExperts.
        count: experts that stay in every block.
    """

    layout = "uniform"

    def __init__(self, anatomy: Anatomy, count: int) -> None:
        super().__init__(anatomy)
        self.count = count

    def count_removed(self, site: Site, weight: Tensor, keep: Tensor) -> Removed:
        """The parameters of the experts that go."""
        assert isinstance(site, WholeExperts)
        gone = site.units - self.count
        units = [site.units, self.count]
        return {"units": units, "dropped": gone * site.cost, "zeros": 0, "shape_after": [1, self.count]}

    @property
    def copies(self) -> bool:
        """No weight that stays changes."""
        return True

    def cut_stored(
        self,
        block: int,
        keeps: Mapping[str, Tensor],
        tensors: dict[str, Tensor],
        owner: Callable[[str], str],
    ) -> dict[str, Tensor]:
        """The experts that stay, renumbered where each has its own keys, and routers without the others."""
        prefix = f"{self.anatomy.prefix}.{block}."
        for site in self.anatomy.block_sites(block):
            assert isinstance(site, WholeExperts)
            kept = keeps[site.name].nonzero()[:, 0].tolist()
            found = {}
            for key, tensor in tensors.items():
                name, numbered = owner(key).removeprefix(prefix), NUMBER.search(key)
                if not numbered:
                    found[key] = site.cut(name, tensor, kept)
                elif (expert := int(numbered[1])) in kept:
                    found[f"{key[: numbered.start(1)]}{kept.index(expert)}{key[numbered.end(1) :]}"] = tensor
            tensors = found
        return tensors

    def config(self, settings: Settings) -> Settings:
        """config.json with the new count, under each name that the file has for it."""
        config = self.anatomy.model.config
        text = config.get_text_config(decoder=True)
        inner = next((name for name in config.sub_configs if getattr(config, name) is text), None)
        if inner is None:
            return self._counted(settings)
        own = settings.get(inner)
        return settings | {inner: self._counted(dict(own) if isinstance(own, dict) else {})}

    def _counted(self, settings: Settings) -> Settings:
        config = self.anatomy.model.config.get_text_config(decoder=True)
        named = [name for name in COUNTS if name in settings]
        # A file that leaves the count to the class's default gets the field that the class has.
        named = named or [name for name in COUNTS if name in vars(config)]
        return settings | dict.fromkeys(named, self.count)

    def apply(self, keeps: Mapping[str, Tensor], mark: Settings) -> None:
        """Set the count of a model in memory, whose blocks were rebuilt while they were pruned."""
        config = self.anatomy.model.config
        fewer = with_count(config.get_text_config(decoder=True), self.count)
        for name in COUNTS:
            if getattr(fewer, name, None):
                setattr(config.get_text_config(decoder=True), name, self.count)
        config.llmprune = mark
