"""The sizes of a mixture whose blocks keep different numbers of experts, as a modelling file builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from llmprune.model import decoder_config, rebuilt
from llmprune.model.anatomy import Anatomy
from llmprune.model.experts import count, experts_of
from llmprune.model.fewer_experts import FewerExperts
from llmprune.model.resized import COUNTS
from llmprune.model.shapes import Settings
from llmprune.model.unit_config import without_layers


class UnevenExperts(FewerExperts):
    """`per_layer`: each block has its own count; the model's own field keeps that of the heads."""

    layout = "per_layer"

    @property
    def mtp(self) -> Literal["stay"]:
        """The config counts their experts apart from those of the blocks."""
        return "stay"

    def config(self, settings: Settings) -> Settings:
        """config.json with the count of every block."""
        return decoder_config.changed(self.anatomy.model, settings, self._own_config)

    def _own_config(self, settings: Settings) -> Settings:
        """The decoder's own settings."""
        settings = without_layers(settings)
        counts = {site.block: self.counts[site.name] for site in self.anatomy.sites}
        sizes = {str(block): dict.fromkeys(fields(self.anatomy), number) for block, number in counts.items()}
        return settings | {"per_layer_config": sizes, rebuilt.GLOBAL: True}

    def mark(self) -> Settings:
        """The layout."""
        return {"layout": self.layout, "biases": []}

    def apply(self, keeps: Mapping[str, Tensor], mark: Settings) -> None:
        """Set the counts of a model in memory, whose blocks were rebuilt while they were pruned."""
        config = decoder_config.stored_in(self.anatomy.model)
        config.per_layer_config = None  # clears the counts of an earlier pruning
        for field, value in self._own_config({}).items():
            setattr(config, field, value)
        self.anatomy.model.config.llmprune = mark


def fields(anatomy: Anatomy) -> list[str]:
    """Every name that the config has for the count: a class may read any, and another would not follow."""
    config = decoder_config.decoder_config(anatomy.model)
    return [name for name in COUNTS if getattr(config, name, None)]


def differ(anatomy: Anatomy) -> bool:
    """Whether blocks have different numbers of experts already."""
    held = {count(experts) for block in anatomy.blocks for _, experts in experts_of(block)}
    return len(held) > 1
