"""Refit the output layer of every attention and feed-forward network to the outputs of the dense model.

Follows arXiv:2510.14444: block by block, on the calibration inputs, without labels. Only the last layer of
each of the two networks changes; this is a linear problem, so it is solved rather than trained. If a block is
the sum of its input and its two networks, the targets also compensate for the errors of earlier blocks.

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

STEPS = 200  # most iterations of conjugate gradients, used if zeros must stay
ADDITIVE = 1e-3  # relative difference up to which a block counts as the sum of its parts


@dataclass(frozen=True)
class Reconstruct(Recovery):
    """Takes one forward pass of the dense model and one of the pruned model."""

    walks: ClassVar[Pattern] = Units(multiple=1)
    needs: ClassVar = Gram

    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Penalty on moving a weight, as a share of the mean diagonal of the inputs' covariance."""

    def recover(self, task: Task) -> Recovered:
        """Walk both models side by side, with one block of each resident."""
        dense, pruned = task.dense.store, task.pruned.store
        dense_walk = Walk(dense, task.batches, task.pruned.probe())
        walk = Walk(pruned, task.batches, task.pruned.probe())
        sites: list[Refit] = []
        done = len(task.draft.done)
        pairs = zip(walk.stages("reconstructing"), dense_walk.stages(""), strict=True)
        for stage, dense_stage in pairs:
            if stage.index < done:  # of a resumed run: restore its weights and pass the hidden states on
                dense_stage.outputs = dense_stage.run()
                for site in stage.sites:
                    pruned.restore(site, task.draft.shard(stage.index))
                sites += task.draft.done[stage.index].refits
                continue
            targets = _outputs_of(dense_stage, task.together)
            fits = _fits(stage, dense_stage, targets, task.together)
            masked = task.layout is None  # padding needs no mask: its inputs are zero, so its weights stay
            # One at a time: the inputs of the next site depend on the weight of this one.
            refits = [self._refit(pruned, site, fit, masked) for site, fit in fits]
            task.draft.write_block(stage.index, pruned.tensors(stage.index), BlockRecord(refits=refits))
            sites += refits
        task.draft.write_rest(pruned.rest())
        return Recovered({"sites": sites}, walk.logits() if task.pruned.fits_whole() else None)

    def _refit(self, store: Store, site: Site, fit: Fit, masked: bool) -> Refit:
        """Update the weight of one resident layer, and its bias if it has one."""
        weight = store.weight(site)
        step = fit.solve(self.ridge, weight != 0 if masked else None)
        store.set_weight(site, (weight + step).to(weight.dtype))
        if fit.centred:
            store.add_to_bias(site, fit.bias(step))
        return Refit(
            name=site.name, error_before=fit.error(None), error_after=fit.error(step), ridge=self.ridge
        )


def _outputs_of(stage: Stage, together: bool) -> dict[str, list[Tensor]]:
    """Return the outputs of the sites of one dense block by name: [B, T, O] per batch, on the CPU."""
    observed = stage.site_inputs(together=together)
    return {site.name: [_output(site, x).cpu() for x in inputs] for site, inputs in observed}


def _fits(
    stage: Stage, dense_stage: Stage, targets: dict[str, list[Tensor]], together: bool
) -> Iterable[tuple[Site, Fit]]:
    """Yield the normal equations of every site of one block; the caller refits it before the next."""
    # The error of the residual stream at this point: dense minus pruned hidden states.
    stream_error: list[Tensor] | None = None
    if _is_additive(dense_stage, targets):
        stream_error = [a - b for a, b in zip(dense_stage.hidden, stage.hidden, strict=True)]
    for site, arrived in stage.site_inputs(together=together):
        inputs = list(arrived)
        fit = Fit(site)
        for batch, x in enumerate(inputs):
            target = targets[site.name][batch]
            error = target - _output(site, x).cpu()
            fit.update(x, target, error + stream_error[batch] if stream_error else error)
        yield site, fit
        if stream_error:  # the next site corrects what this one, once refitted, still misses
            for batch, x in enumerate(inputs):
                stream_error[batch] += targets[site.name][batch] - _output(site, x).cpu()


def _is_additive(stage: Stage, targets: dict[str, list[Tensor]]) -> bool:
    """Return whether the block's output is the sum of its input and the outputs of its sites.

    Measured rather than known by family: a norm or a scale after a network breaks the sum.
    """
    assert stage.outputs is not None
    added = stage.outputs[0] - stage.hidden[0]
    rest = added.cpu() - sum(parts[0] for parts in targets.values())
    return float(rest.norm()) <= ADDITIVE * float(added.norm())


def _output(site: Site, x: Tensor) -> Tensor:
    """Return the output [B, T, O] of a site for inputs [B, T, I], with its current weights."""
    bias = site.bias
    output = x @ site.matrix(site.weight).T
    return output if bias is None else output + bias


class Fit:
    """The normal equations of a layer: find the change of its weight that reduces the output error."""

    def __init__(self, site: Site) -> None:
        device = site.weight.device
        self.centred = site.bias is not None
        self._tokens = 0
        self._gram = torch.zeros(site.inputs, site.inputs, device=device)
        self._cross = torch.zeros(site.inputs, site.outputs, device=device)
        self._x_sum = torch.zeros(site.inputs, dtype=torch.float64, device=device)
        self._e_sum = torch.zeros(site.outputs, dtype=torch.float64, device=device)
        self._e_square, self._y_square = 0.0, 0.0

    def update(self, x: Tensor, target: Tensor, error: Tensor) -> None:
        """Account for inputs [B, T, I], the dense outputs and the output errors, both [B, T, O]."""
        x, error = x.flatten(0, -2).float(), error.flatten(0, -2).to(x.device, torch.float32)
        self._tokens += len(x)
        ops.add_gram(self._gram, x)
        self._cross.addmm_(x.T, error)
        self._x_sum += x.sum(0)
        self._e_sum += error.sum(0)
        self._e_square += float(error.double().square().sum())
        self._y_square += float(target.double().square().sum())

    def solve(self, ridge: float, keep: Tensor | None) -> Tensor:
        """Return the step [O, I] of the weight, zero where `keep` is False."""
        gram, cross = ops.mirrored(self._gram).double(), self._cross.double()
        if self.centred:  # the bias absorbs the means, so the weight is fitted to covariances
            gram -= torch.outer(self._x_sum, self._x_sum) / self._tokens
            cross -= torch.outer(self._x_sum, self._e_sum) / self._tokens
        gram.diagonal().add_(ridge * float(gram.diagonal().mean()) or 1.0)
        if keep is None:
            step: Tensor = torch.linalg.solve(gram, cross).T
            return step
        # With a mask each row has its own support, and a factorisation per row would be far slower.
        return _conjugate_gradients(gram, cross.T, keep)

    def bias(self, step: Tensor) -> Tensor:
        """Return the step [O] of the bias that belongs to a step of the weight."""
        return (self._e_sum - step @ self._x_sum) / self._tokens

    def error(self, step: Tensor | None) -> float:
        """Return ||output error|| / ||dense output||, after a step of weight and bias, or before if None."""
        square = self._e_square  # expanded: ||e - s x - b||^2 needs sums only, and no second pass
        if step is not None:
            gram = ops.mirrored(self._gram).double()
            square += float(((step @ gram) * step).sum() - 2 * (step * self._cross.double().T).sum())
            if self.centred:
                bias = self.bias(step)
                rest = self._e_sum - step @ self._x_sum
                square += float(self._tokens * bias.square().sum() - 2 * bias @ rest)
        # The terms nearly cancel for a good fit, so rounding may make the sum negative.
        return math.sqrt(max(square, 0.0) / max(self._y_square, 1e-30))


def _conjugate_gradients(gram: Tensor, cross: Tensor, keep: Tensor) -> Tensor:
    """Return the step S [O, I], zero outside `keep`, that minimises S G S^T / 2 - S C^T row by row.

    Args:
        gram: G [I, I].
        cross: C [O, I].
        keep: bool [O, I].
    """
    step = torch.zeros_like(cross)
    residual = cross * keep
    direction = residual.clone()
    square = residual.square().sum(1, keepdim=True)
    tolerance = 1e-8 * square
    for _ in range(STEPS):
        if bool((square <= tolerance).all()):
            break
        image = (direction @ gram) * keep
        length = square / (direction * image).sum(1, keepdim=True).clamp_min(1e-300)
        step += length * direction
        residual -= length * image
        last, square = square, residual.square().sum(1, keepdim=True)
        direction = residual + direction * (square / last.clamp_min(1e-300))
    return step
