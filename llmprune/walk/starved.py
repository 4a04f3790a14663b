"""Starved experts: those that too few calibration tokens reach see other tokens of their block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmprune import ranks
from llmprune.model.expert_site import ExpertSite
from llmprune.model.experts import projections
from llmprune.model.site import Site
from llmprune.walk.expert_loop import ExpertLoop
from llmprune.walk.observation import Observation

if TYPE_CHECKING:
    from llmprune.walk.stage import Stage

BATCHES = 8  # whose tokens they may see


class Starved:
    """Feeds the experts of one block.

    Args:
        stage: the block, resident while they are fed.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._spare: dict[nn.Module, Tensor] = {}

    def feed(self, site: Site, seen: Observation) -> None:
        """Show an expert as many tokens as its statistic needs, and note how many reached it by themselves.

        It alone sees them: what the block puts out stays as it is.
        """
        if not isinstance(site, ExpertSite):
            return
        tokens = seen.statistic.tokens
        missing = seen.statistic.fewest(site.inputs) - tokens
        if missing > 0:
            spare = self._tokens(site.layer)
            rows = spare[:: max(1, len(spare) // missing)][:missing]
            first = site.leaf == projections(site.layer)[0]
            seen.update(rows if first else ExpertLoop(site.layer).between(site.expert, rows))
        seen.notes = {"tokens": tokens, "topped_up": seen.statistic.tokens - tokens}

    def _tokens(self, layer: nn.Module) -> Tensor:
        """Tokens [T, D] that enter a module of experts, from a few batches spread over all."""
        if layer not in self._spare:
            first, own = ranks.before(), range(len(self._stage.hidden))
            batches = range(sum(ranks.gathered([len(own)])))
            spread = batches[:: max(1, len(batches) // BATCHES)][:BATCHES]
            here = [batch - first for batch in spread if batch - first in own]
            entering = ranks.gathered([self._stage.entering(layer, batch) for batch in here])
            self._spare[layer] = torch.cat(entering)
        return self._spare[layer]
