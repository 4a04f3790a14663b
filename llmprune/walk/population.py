"""Measure many candidates in one walk: how far each choice of levels is from the dense model.

Candidates that choose alike up to a block share their hidden states there, so that what they have in common
is computed once.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence

from torch import Tensor

from llmprune import ranks
from llmprune.checkpoint.store import Store
from llmprune.walk.levels import BlockLevels, Level, Levels
from llmprune.walk.predictions import States, divergences
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk

Candidate = tuple[Level | None, ...]
"""The level of every site of the model, in order; None for the dense site."""

HELD = 1 << 17  # tokens whose hidden states candidates may hold at a time


class Population:
    """Compares candidates with the same dense model.

    Args:
        store: the dense model.
        probe: token ids [1, T].
        levels: of every block.
    """

    def __init__(self, store: Store, probe: Tensor, levels: Levels) -> None:
        self._store, self._probe, self._levels = store, probe, levels

    def cost(self, candidates: Sequence[Candidate], batches: list[Tensor], label: str) -> list[float]:
        """The mean KL(dense || candidate) in nats of every candidate.

        Args:
            candidates: to compare; those that are equal are measured once.
            batches: token ids, each [B, T].
            label: names the walk in the progress display.
        """
        at_once = max(1, HELD // sum(batch.numel() for batch in batches))
        distinct = list(dict.fromkeys(candidates))
        size = min(at_once, -(-len(distinct) // ranks.count()))
        parts = [distinct[start : start + size] for start in range(0, len(distinct), size)]

        def measured(part: list[Candidate]) -> dict[Candidate, float]:
            walk = Walk(self._store, batches, self._probe)
            dense, ends = self._ends(walk, part, label)
            return divergences(self._store, walk, dense, ends)

        found = dict(ChainMap(*ranks.divided(parts, measured)))
        return [found[candidate] for candidate in candidates]

    def _ends(
        self, walk: Walk, candidates: list[Candidate], label: str
    ) -> tuple[States, dict[Candidate, States]]:
        """The states that leave the last block, of the dense model and of every candidate."""
        dense: States = []
        states: dict[Candidate, States] = {}  # by what was chosen so far; the dense ones are the stage's own
        start = 0
        for stage in walk.stages(label):
            stop, after = start + len(stage.sites), {}
            names = [site.name for site in stage.sites]
            wanted = {pair for c in candidates for pair in zip(names, c[start:stop], strict=True)}
            block = self._levels.get(stage.index, wanted)
            for chosen in dict.fromkeys(candidate[:stop] for candidate in candidates):
                if any(level is not None for level in chosen):
                    entering = states.get(chosen[:start], stage.hidden)
                    after[chosen] = self._through(stage, block, chosen[start:], entering)
            dense = stage.outputs = stage.run()
            start, states = stop, after
        return dense, {candidate: states.get(candidate, dense) for candidate in candidates}

    def _through(self, stage: Stage, block: BlockLevels, chosen: Candidate, entering: States) -> States:
        """Take states through a block whose sites have the chosen levels."""
        with self._store.as_before(stage.sites):
            for site, level in zip(stage.sites, chosen, strict=True):
                if level is not None:
                    block.place(self._store, site, level)
            return stage.run(entering)
