"""Refit the last matrix of every expert of a block, one after another, to what the block still misses.

A block adds what its experts put out, each times its router's weight. So what its output lacks of the dense
block's is a linear problem in the last matrix of one expert, on the tokens that reach it; what is left then
is the next expert's (Gauss-Seidel).

Letters used in shapes: N tokens of one batch, D hidden size, I inputs of a last matrix, K experts chosen for
a token, R tokens that reach one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmprune.measured import Refit
from llmprune.model.expert_site import ExpertSite
from llmprune.model.experts import projections
from llmprune.model.site import Site
from llmprune.tensors.fit import Fit
from llmprune.tensors.held_out import EVERY
from llmprune.walk.expert_loop import ExpertLoop
from llmprune.walk.pausing import device_of, replaced
from llmprune.walk.stage import Stage

ADDITIVE = 1e-3  # relative difference up to which a block adds what its experts put out

RefitSite = Callable[[Site, Fit, Fit | None], Refit]


@dataclass(frozen=True)
class Arrived:
    """What one batch brings to the experts of a block, and what that is to put out for it; in host memory."""

    x: Tensor
    """[N, D]."""
    index: Tensor
    """Of the chosen experts [N, K]."""
    weight: Tensor
    """Of their outputs [N, K]."""
    target: Tensor
    """What the dense block puts out [N, D]."""
    lacking: Tensor
    """That, less what this block puts out [N, D]; what is refitted changes it."""

    def of(self, layer: nn.Module, expert: int) -> tuple[Tensor, Tensor]:
        """Which tokens [R] reach an expert, and what enters its last matrix times its weight [R, I]."""
        token, place = torch.where(self.index == expert)
        device = device_of(layer)
        entering = ExpertLoop(layer).between(expert, self.x[token].to(device))
        return token, entering.float() * self.weight[token, place, None].to(device)


def refit_experts(
    stage: Stage, layer: nn.Module, targets: list[Tensor], refit: RefitSite, *, splits: bool
) -> Iterator[Refit]:
    """Refit the experts of one resident module.

    Args:
        stage: of the pruned block.
        layer: holds its experts.
        targets: what the dense block puts out, each [B, T, D].
        refit: changes the weight of a site by its normal equations, and tells how far that went.
        splits: whether those of every fourth batch stand apart.
    """
    batches = [_arrived(stage, layer, batch, target) for batch, target in enumerate(targets)]
    last = projections(layer)[1]
    for site in stage.sites:
        if isinstance(site, ExpertSite) and site.layer is layer and site.leaf == last:
            yield from _refit(site, batches, refit, splits=splits)


def _refit(site: ExpertSite, batches: list[Arrived], refit: RefitSite, *, splits: bool) -> Iterator[Refit]:
    """Refit one expert, unless no token reaches it."""
    size = site.inputs, site.outputs, False, site.weight.device
    rest, held_out = Fit(*size), Fit(*size) if splits else None
    reached = [batch.of(site.layer, site.expert) for batch in batches]
    for number, (batch, (token, x)) in enumerate(zip(batches, reached, strict=True)):
        fit = held_out if held_out and (number + 1) % EVERY == 0 else rest
        fit.update(x, batch.target[token], batch.lacking[token])
    if not any(len(token) for token, _ in reached):
        return
    before = site.matrix(site.weight).float().clone()
    yield refit(site, rest, held_out)
    step = site.matrix(site.weight).float() - before
    for batch, (token, x) in zip(batches, reached, strict=True):
        batch.lacking[token] -= (x @ step.T).to(batch.lacking)


def _arrived(stage: Stage, layer: Any, number: int, target: Tensor) -> Arrived:
    """What one batch brings."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        found.append((x, index, weight))
        return ExpertLoop(layer)(x, index, weight)

    with replaced([layer], [forward]):
        output = stage.output(number)
    ((x, index, weight),) = found
    wanted, given = (one.cpu().float().flatten(0, -2) for one in (target, output))
    return Arrived(x.cpu(), index.cpu(), weight.cpu(), wanted, wanted - given)


def adds(stage: Stage, layer: Any) -> bool:
    """Whether the block's output is the sum of these experts' outputs and of something else.

    Measured rather than known by family: a norm or a scale behind the experts breaks the sum.
    """
    if layer.has_post_expert_norm:
        return False
    found: list[Tensor] = []

    def silent(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        found.append(ExpertLoop(layer)(x, index, weight))
        return torch.zeros_like(x)

    with replaced([layer], [silent]):
        rest = stage.output(0)
    added = torch.cat(found).view_as(rest)
    missed = stage.output(0) - rest - added
    return float(missed.norm()) <= ADDITIVE * float(added.norm())
