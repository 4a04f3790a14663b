"""Refit the output layer of every attention and feed-forward network to the outputs of the dense model.

Follows arXiv:2510.14444: block by block, on the calibration inputs, without labels. Only the last layer of
each of the two networks changes; this is a linear problem, so it is solved rather than trained. If a block is
the sum of its input and its two networks, the targets also compensate for the errors of earlier blocks. In a
mixture, the last matrices of its experts change.

Letters used in shapes: B sequences, T tokens, N of all sequences, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from llmprune.checkpoint.store import Store
from llmprune.measured import Refit
from llmprune.model.anatomy import Anatomy
from llmprune.model.experts import experts_of, is_mixture
from llmprune.model.site import Site
from llmprune.patterns.base import Pattern
from llmprune.patterns.units import Units
from llmprune.patterns.unstructured import Unstructured
from llmprune.progress import say
from llmprune.recovery.base import Recovered, Recovery, Task
from llmprune.recovery.base.expert_fits import adds, refit_experts
from llmprune.recovery.base.side_by_side import SideBySide
from llmprune.tensors.fit import Fit
from llmprune.tensors.held_out import EVERY, USUAL
from llmprune.tensors.statistics import Gram, InputNorm, Statistic
from llmprune.walk.stage import Stage

ADDITIVE = 1e-3  # relative difference up to which a block counts as the sum of its parts


@dataclass(frozen=True)
class Reconstruct(Recovery):
    """Takes one forward pass of the dense model and one of the pruned model."""

    walks: ClassVar[Pattern] = Units(multiple=1)
    needs: ClassVar = Gram
    serves: ClassVar = ("weights", "units", "blocks", "experts")
    translates: ClassVar = True

    ridge: Annotated[float, Field(gt=0)] | Literal["held_out"] = USUAL
    """Penalty on moving a weight, as a share of the mean diagonal of the inputs' covariance; `held_out` tries
    some on every fourth batch of the text, layer by layer."""

    def walked(self, anatomy: Anatomy) -> tuple[Pattern, type[Statistic]]:
        """Of a mixture all matrices; one expert is measured at a time."""
        if any(map(is_mixture, anatomy.blocks)):
            return Unstructured(), InputNorm
        return self.walks, self.needs

    def recover(self, task: Task) -> Recovered:
        """Walk both models side by side, with one block of each resident."""
        if self.ridge == "held_out" and len(task.batches) < EVERY:
            say(f"of {len(task.batches)} batches none is held out, so the ridge is {USUAL}")
        masked = task.layout is None  # padding needs no mask: its inputs are zero, so its weights stay
        both = SideBySide(task)
        if any(map(is_mixture, task.pruned.anatomy.blocks)):
            return self._recover_experts(task, both, masked)
        for stage, dense in both.blocks():
            targets = _outputs_of(dense, task.together)
            fits = _fits(stage, dense, targets, task.together, splits=self.ridge == "held_out")
            # One at a time: the inputs of the next site depend on the weight of this one.
            refits = [self._refit(task.pruned.store, site, *fit, masked) for site, fit in fits]
            both.write(stage, refits)
        return both.finish()

    def _recover_experts(self, task: Task, both: SideBySide, masked: bool) -> Recovered:
        """The same for the blocks of a mixture that add what their experts put out."""
        store, splits = task.pruned.store, self.ridge == "held_out"

        def refit(site: Site, rest: Fit, held_out: Fit | None) -> Refit:
            return self._refit(store, site, rest, held_out, masked)

        for stage, dense in both.blocks():
            dense.outputs = targets = dense.run()
            layers = [layer for _, layer in experts_of(stage.block) if adds(stage, layer)]
            fits = [refit_experts(stage, layer, targets, refit, splits=splits) for layer in layers]
            both.write(stage, list(chain.from_iterable(fits)))
        return both.finish()

    def _refit(self, store: Store, site: Site, rest: Fit, held_out: Fit | None, masked: bool) -> Refit:
        """Update the weight of one resident layer, and its bias if it has one."""
        weight = store.weight(site)
        keep = weight != 0 if masked else None
        if self.ridge == "held_out":
            assert held_out is not None
            ridge, fit = rest.chosen(held_out, keep), rest + held_out
        else:
            ridge, fit = self.ridge, rest
        step = fit.solve(ridge, keep)
        store.set_weight(site, (weight + step).to(weight.dtype))
        if fit.centred:
            store.add_to_bias(site, fit.bias(step))
        return Refit(name=site.name, error_before=fit.error(None), error_after=fit.error(step), ridge=ridge)


def _outputs_of(stage: Stage, together: bool) -> dict[str, list[Tensor]]:
    """Return the outputs of the sites of one dense block, by kind: [N, O] per batch, on the CPU."""
    observed = stage.site_inputs(together=together)
    return {site.kind: [_output(site, x).cpu() for x in inputs] for site, inputs in observed}


def _fits(
    stage: Stage, dense_stage: Stage, targets: dict[str, list[Tensor]], together: bool, *, splits: bool
) -> Iterable[tuple[Site, tuple[Fit, Fit | None]]]:
    """Yield the normal equations of every site of one block; the caller refits it before the next.

    Where the text is split, those of every fourth batch stand apart.
    """
    # The error of the residual stream at this point: dense minus pruned hidden states.
    stream_error: list[Tensor] | None = None
    if _is_additive(dense_stage, targets):
        pairs = zip(dense_stage.hidden, stage.hidden, strict=True)
        stream_error = [(a - b).flatten(0, -2) for a, b in pairs]
    kinds = iter(targets)
    for site, arrived in stage.site_inputs(together=together):
        while (kind := next(kinds)) != site.kind:  # a part that was removed: this site makes up for it
            for batch, error in enumerate(stream_error or ()):
                error += targets[kind][batch]
        inputs = list(arrived)
        size = site.inputs, site.outputs, site.bias is not None, site.weight.device
        rest, held_out = Fit(*size), Fit(*size) if splits else None
        for batch, x in enumerate(inputs):
            target = targets[site.kind][batch]
            error = target - _output(site, x).cpu()
            fit = held_out if held_out and (batch + 1) % EVERY == 0 else rest
            fit.update(x, target, error + stream_error[batch] if stream_error else error)
        yield site, (rest, held_out)
        if stream_error:  # the next site corrects what this one, once refitted, still misses
            for batch, x in enumerate(inputs):
                stream_error[batch] += targets[site.kind][batch] - _output(site, x).cpu()


def _is_additive(stage: Stage, targets: dict[str, list[Tensor]]) -> bool:
    """Return whether the block's output is the sum of its input and the outputs of its sites.

    Measured rather than known by family: a norm or a scale after a network breaks the sum.
    """
    assert stage.outputs is not None
    added = stage.outputs[0] - stage.hidden[0]
    rest = added.flatten(0, -2).cpu() - sum(parts[0] for parts in targets.values())
    return float(rest.norm()) <= ADDITIVE * float(added.norm())


def _output(site: Site, x: Tensor) -> Tensor:
    """Return the output [N, O] of a site for inputs [B, T, I] or [N, I], with its current weights."""
    bias = site.bias
    output = x.flatten(0, -2) @ site.matrix(site.weight).T
    return output if bias is None else output + bias
