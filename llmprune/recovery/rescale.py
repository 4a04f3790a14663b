"""Scale every expert so that its block comes closest to the dense block's output.

Where a router's weights do not add up to one, those of the experts that stay grow once others are gone, and
nothing takes that back. One factor for each expert does: those of a block solve one least-squares problem
against the dense model's outputs, and are folded into the experts' last matrices. Zeros and sizes stay.

Letters used in shapes: B sequences, T tokens, N of one batch, D hidden size, E experts, K chosen for a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from llmprune.checkpoint.opened import Opened
from llmprune.checkpoint.store import Store
from llmprune.errors import RequestError
from llmprune.measured import Refit
from llmprune.model.expert_site import ExpertSite
from llmprune.model.experts import count, experts_of, is_mixture, projections
from llmprune.recovery.base import Recovered, Recovery, Task
from llmprune.recovery.base.expert_fits import adds
from llmprune.recovery.base.side_by_side import SideBySide
from llmprune.tensors.fit import Fit
from llmprune.tensors.held_out import USUAL
from llmprune.walk.expert_loop import ExpertLoop
from llmprune.walk.pausing import device_of, replaced
from llmprune.walk.stage import Stage

TOKENS = 64  # whose contributions are spread over all experts at a time


@dataclass(frozen=True)
class Rescale(Recovery):
    """Takes one forward pass of the dense model and two of the pruned model."""

    serves: ClassVar = ("weights", "units", "experts")
    translates: ClassVar = True

    ridge: Annotated[float, Field(gt=0)] = USUAL
    """Penalty on a factor's distance from one, as a share of the experts' mean square."""

    def require(self, pruned: Opened, dense: Opened, samples: int, length: int) -> None:
        """Refuse a model without experts."""
        if not any(map(is_mixture, pruned.anatomy.blocks)):
            raise RequestError(
                "recovery",
                f"rescale scales experts, and this {pruned.anatomy.family!r} model has none; use reconstruct",
            )

    def recover(self, task: Task) -> Recovered:
        """Walk both models side by side, with one block of each resident."""
        both = SideBySide(task)
        for stage, dense in both.blocks():
            dense.outputs = targets = dense.run()
            layers = [layer for _, layer in experts_of(stage.block) if adds(stage, layer)]
            refits = [self._rescaled(task.pruned.store, stage, layer, targets) for layer in layers]
            both.write(stage, refits)
        return both.finish()

    def _rescaled(self, store: Store, stage: Stage, layer: nn.Module, targets: list[Tensor]) -> Refit:
        """Scale the experts of one resident module."""
        fit = Fit(count(layer), 1, biased=False, device=device_of(layer))
        for batch, target in enumerate(targets):
            output, index, added = _computed(stage, layer, batch)
            each = index, added, target.flatten(0, -2), (target - output).flatten(0, -2)
            for some, parts, wanted, lacking in zip(*(t.split(TOKENS) for t in each), strict=True):
                x = _spread(some, parts, count(layer))
                fit.update(x.mT.flatten(0, 1), wanted.reshape(-1, 1), lacking.reshape(-1, 1))
        step = fit.solve(self.ridge, None)
        last = projections(layer)[1]
        sites = [site for site in stage.sites if site.layer is layer and site.leaf == last]
        for site in sites:
            assert isinstance(site, ExpertSite)
            weight = store.weight(site)
            store.set_weight(site, (weight * (1 + step[0, site.expert])).to(weight.dtype))
        before, after = fit.error(None), fit.error(step)
        return Refit(name=sites[0].key, error_before=before, error_after=after, ridge=self.ridge)


def _computed(stage: Stage, layer: Any, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """The block's output [B, T, D] for a batch, its tokens' experts, and what these add [N, K, D]."""
    loop, found = ExpertLoop(layer), list[tuple[Tensor, Tensor]]()

    def forward(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        outputs = loop.outputs(x, index, weight)
        added = outputs.float()
        if layer.has_bias:  # it is not scaled
            bias = layer.get_parameter(f"{projections(layer)[1]}_bias")
            added = added - weight[..., None] * bias[index.clamp(max=len(bias) - 1)]
        found.append((index, added))
        return outputs.sum(1).to(x.dtype)

    with replaced([layer], [forward]):
        output = stage.output(batch)
    ((index, added),) = found
    return output, index, added


def _spread(index: Tensor, added: Tensor, experts: int) -> Tensor:
    """What every expert adds to some tokens [N, E, D], given by the chosen ones' numbers and parts."""
    parts = added.new_zeros(len(added), experts + 1, added.shape[-1])  # beyond the last: adds nothing
    parts.scatter_add_(1, index.clamp(max=experts)[..., None].expand_as(added), added)
    return parts[:, :experts]
