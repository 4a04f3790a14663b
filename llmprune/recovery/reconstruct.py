"""Refit the output layers of every attention and feed-forward network to what the dense ones put out.

After arXiv:2510.14444: block by block, attention and feed-forward network apart, on the calibration inputs,
without labels. Only the layer that ends each of the two moves; its problem is linear, so it is solved rather
than trained. Where a block adds what its two parts put out to its input, the target also makes up for what
earlier blocks still lack.

Letters used in shapes: B sequences, T tokens, O outputs, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llmprune.checkpoint.journal import BlockRecord
from llmprune.checkpoint.store import Store
from llmprune.model.site import Site
from llmprune.patterns.base import Pattern
from llmprune.patterns.units import Units
from llmprune.recovery.base import Recovered, Recovery, Task
from llmprune.report import Refit
from llmprune.tensors import ops
from llmprune.tensors.statistics import Gram
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk

STEPS = 200  # of the conjugate gradients at most, where zeros must stay
ADDITIVE = 1e-3  # relative difference up to which a block counts as the sum of its parts


@dataclass(frozen=True)
class Reconstruct(Recovery):
    """Costs one forward pass of the dense model and one of the pruned one."""

    walks: ClassVar[Pattern] = Units(multiple=1)
    needs: ClassVar = Gram

    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Penalty on moving a weight, as a share of the mean diagonal of the inputs' covariance."""

    def recover(self, task: Task) -> Recovered:
        """Walk both models side by side, one block of each resident."""
        dense, pruned = task.dense.store, task.pruned.store
        dense_walk = Walk(dense, task.batches, task.pruned.probe())
        walk = Walk(pruned, task.batches, task.pruned.probe())
        sites: list[Refit] = []
        done = len(task.draft.done)
        pairs = zip(walk.stages("reconstructing"), dense_walk.stages(""), strict=True)
        for stage, model in pairs:
            if stage.index < done:
                model.outputs = model.run()
                for site in stage.sites:
                    pruned.restore(site, task.draft.shard(stage.index))
                sites += task.draft.done[stage.index].refits
                continue
            targets = _outputs_of(model, task.together)
            fits = _fits(stage, model, targets, task.together)
            masked = task.layout is None  # padding needs no mask: nothing arrives there, so nothing moves
            found = [self._refit(pruned, site, fit, masked) for site, fit in fits]
            task.draft.write_block(stage.index, pruned.tensors(stage.index), BlockRecord(refits=found))
            sites += found
        task.draft.write_rest(pruned.rest())
        return Recovered({"sites": sites}, walk.logits() if task.pruned.fits_whole() else None)

    def _refit(self, store: Store, site: Site, fit: Fit, masked: bool) -> Refit:
        """Move one resident layer's weight, and its bias if it has one."""
        weight = store.weight(site)
        step = fit.solve(self.ridge, weight != 0 if masked else None)
        store.set_weight(site, (weight + step).to(weight.dtype))
        if fit.centred:
            store.add_to_bias(site, fit.bias(step))
        return Refit(
            name=site.name, error_before=fit.error(None), error_after=fit.error(step), ridge=self.ridge
        )


def _outputs_of(stage: Stage, together: bool) -> dict[str, list[Tensor]]:
    """What the consumers of one dense block put out, by their names: [B, T, O] per batch, on the host."""
    reached = stage.site_inputs(together=together)
    return {site.name: [_output(site, x).cpu() for x in inputs] for site, inputs in reached}


def _fits(
    stage: Stage, model: Stage, targets: dict[str, list[Tensor]], together: bool
) -> Iterable[tuple[Site, Fit]]:
    """The normal equations of every site of one block; the caller moves its weight before the next."""
    lacking: list[Tensor] | None = None
    if _additive(model, targets):
        lacking = [a - b for a, b in zip(model.hidden, stage.hidden, strict=True)]
    for site, arrived in stage.site_inputs(together=together):
        inputs = list(arrived)
        fit = Fit(site)
        for batch, x in enumerate(inputs):
            wanted = targets[site.name][batch]
            less = wanted - _output(site, x).cpu()
            fit.update(x, wanted, less + lacking[batch] if lacking else less)
        yield site, fit
        if lacking:
            for batch, x in enumerate(inputs):
                lacking[batch] += targets[site.name][batch] - _output(site, x).cpu()


def _additive(model: Stage, targets: dict[str, list[Tensor]]) -> bool:
    """Whether the block adds what its parts put out to its input."""
    assert model.outputs is not None
    added = model.outputs[0] - model.hidden[0]
    rest = added.cpu() - sum(parts[0] for parts in targets.values())
    return float(rest.norm()) <= ADDITIVE * float(added.norm())


def _output(site: Site, x: Tensor) -> Tensor:
    """What a site's layer makes of its inputs [B, T, I] with the weights that it has now."""
    bias = site.bias
    output = x @ site.matrix(site.weight).T
    return output if bias is None else output + bias


class Fit:
    """The normal equations of a layer that is to put out more: its inputs against what lacks."""

    def __init__(self, site: Site) -> None:
        device = site.weight.device
        self.centred = site.bias is not None
        self._tokens = 0
        self._gram = torch.zeros(site.inputs, site.inputs, device=device)
        self._cross = torch.zeros(site.inputs, site.outputs, device=device)
        self._x_sum = torch.zeros(site.inputs, dtype=torch.float64, device=device)
        self._e_sum = torch.zeros(site.outputs, dtype=torch.float64, device=device)
        self._e_square, self._y_square = 0.0, 0.0

    def update(self, x: Tensor, wanted: Tensor, lacking: Tensor) -> None:
        """Account for inputs [B, T, I], the dense outputs, and what is lacking to them [B, T, O]."""
        x, lacking = x.flatten(0, -2).float(), lacking.flatten(0, -2).to(x.device, torch.float32)
        self._tokens += len(x)
        ops.add_gram(self._gram, x)
        self._cross.addmm_(x.T, lacking)
        self._x_sum += x.sum(0)
        self._e_sum += lacking.sum(0)
        self._e_square += float(lacking.double().square().sum())
        self._y_square += float(wanted.double().square().sum())

    def solve(self, ridge: float, keep: Tensor | None) -> Tensor:
        """The step [O, I] of the weight, zero where `keep` is False."""
        gram, cross = ops.mirrored(self._gram).double(), self._cross.double()
        if self.centred:
            gram -= torch.outer(self._x_sum, self._x_sum) / self._tokens
            cross -= torch.outer(self._x_sum, self._e_sum) / self._tokens
        gram.diagonal().add_(ridge * float(gram.diagonal().mean()) or 1.0)
        if keep is None:
            step: Tensor = torch.linalg.solve(gram, cross).T
            return step
        return _conjugate_gradients(gram, cross.T, keep)

    def bias(self, step: Tensor) -> Tensor:
        """The step [O] of the bias that goes with a step of the weight."""
        return (self._e_sum - step @ self._x_sum) / self._tokens

    def error(self, step: Tensor | None) -> float:
        """||what lacks|| / ||dense outputs||, before or after a step of the weight and its bias."""
        square = self._e_square
        if step is not None:
            gram = ops.mirrored(self._gram).double()
            square += float(((step @ gram) * step).sum() - 2 * (step * self._cross.double().T).sum())
            if self.centred:
                bias = self.bias(step)
                rest = self._e_sum - step @ self._x_sum
                square += float(self._tokens * bias.square().sum() - 2 * bias @ rest)
        return math.sqrt(max(square, 0.0) / max(self._y_square, 1e-30))


def _conjugate_gradients(gram: Tensor, cross: Tensor, keep: Tensor) -> Tensor:
    """The step S [O, I] on the support `keep` that minimises S G S^T / 2 - S C, row by row."""
    step = torch.zeros_like(cross)
    residual = cross * keep
    direction = residual.clone()
    square = residual.square().sum(1, keepdim=True)
    enough = 1e-8 * square
    for _ in range(STEPS):
        if bool((square <= enough).all()):
            break
        moved = (direction @ gram) * keep
        length = square / (direction * moved).sum(1, keepdim=True).clamp_min(1e-300)
        step += length * direction
        residual -= length * moved
        last, square = square, residual.square().sum(1, keepdim=True)
        direction = residual + direction * (square / last.clamp_min(1e-300))
    return step
