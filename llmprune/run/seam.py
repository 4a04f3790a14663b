"""Refit the last kept block before each removed span to the dense hidden states at the end of the span.

Letters used in shapes: B sequences of one batch, T tokens, D hidden size, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmprune import ranks
from llmprune.checkpoint.store import Store
from llmprune.measured import Refit
from llmprune.model.site import Site
from llmprune.model.sites.units import WholeUnits
from llmprune.patterns.units import Units
from llmprune.repair.span import Span
from llmprune.tensors.fit import Fit
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk

States = list[Tensor]  # hidden states [B, T, D], one tensor per batch


class Seams:
    """The seams that removed spans leave, and how to close them.

    Args:
        store: the dense model, which is walked once.
        batches: token ids, each [B, T].
        probe: token ids [1, T].
        gone: the blocks that go.
        repair: its options.
    """

    def __init__(
        self, store: Store, batches: list[Tensor], probe: Tensor, gone: set[int], repair: Span
    ) -> None:
        self._store, self._repair = store, repair
        self._sites: dict[int, list[Site]] = {}
        for site in WholeUnits(Units(multiple=1)).find(store.anatomy):
            if repair.parts == "all" or site.part == "ffn":
                self._sites.setdefault(site.block, []).append(site)
        ends = dict(_spans(gone))
        self._targets: dict[int, States] = {}
        walk = Walk(store, ranks.share(batches) if ends else [], probe)
        for stage in walk.stages("measuring removed spans"):
            stage.outputs = stage.run()
            for before, end in ends.items():
                if end == stage.index:
                    self._targets[before] = stage.outputs

    @torch.no_grad()
    def close(self, stage: Stage) -> list[Refit]:
        """Refit the output layers of one resident block, if a removed span follows it."""
        targets = self._targets.pop(stage.index, None)
        if targets is None:
            return []
        block = Stage(self._store.anatomy, stage.index, stage.hidden, stage.calls)
        block.sites = self._sites.get(stage.index, [])  # an earlier pruning may have removed its parts
        done: list[Refit] = []
        # One layer after the other: the first changes the inputs of the second, and what is left to fit.
        for number, _ in enumerate(block.sites):
            done.append(self._refit(block, number, targets))
        return done

    def _refit(self, block: Stage, number: int, targets: States) -> Refit:
        """Refit one output layer to the error of the whole block."""
        site = block.sites[number]
        errors = [target - output for target, output in zip(targets, block.run(), strict=True)]
        fit = Fit(site.inputs, site.outputs, site.bias is not None, site.weight.device)
        for batch, x in enumerate(block.inputs_of(site)):
            fit.update(x, targets[batch], errors[batch])
        if ranks.count() > 1:
            fit.add_up(ranks.add_up)
        weight = self._store.weight(site)
        step = fit.solve(self._repair.ridge, None)
        self._store.set_weight(site, (weight + step).to(weight.dtype))
        if fit.centred:
            self._store.add_to_bias(site, fit.bias(step))
        before, after = fit.error(None), fit.error(step)
        return Refit(name=site.name, error_before=before, error_after=after, ridge=self._repair.ridge)


def _spans(gone: set[int]) -> Iterator[tuple[int, int]]:
    """The kept block before each removed span, and the last block of the span."""
    for start in sorted(gone):
        if start - 1 not in gone and start > 0:
            end = start
            while end + 1 in gone:
                end += 1
            yield start - 1, end
