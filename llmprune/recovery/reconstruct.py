"""Refit the output layer of every attention and feed-forward network to the outputs of the dense model.

Follows arXiv:2510.14444: block by block, on the calibration inputs, without labels. Only the last layer of
each of the two networks changes; this is a linear problem, so it is solved rather than trained. If a block is
the sum of its input and its two networks, the targets also compensate for the errors of earlier blocks.

Letters used in shapes: B sequences, T tokens, N of all sequences, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from llmprune.checkpoint.journal import BlockRecord
from llmprune.checkpoint.store import Store
from llmprune.measured import Refit
from llmprune.model.site import Site
from llmprune.patterns.base import Pattern
from llmprune.patterns.units import Units
from llmprune.progress import say
from llmprune.recovery.base import Recovered, Recovery, Task
from llmprune.tensors.fit import Fit
from llmprune.tensors.held_out import EVERY, USUAL
from llmprune.tensors.statistics import Gram
from llmprune.walk.stage import Stage
from llmprune.walk.walk import Walk

ADDITIVE = 1e-3  # relative difference up to which a block counts as the sum of its parts


@dataclass(frozen=True)
class Reconstruct(Recovery):
    """Takes one forward pass of the dense model and one of the pruned model."""

    walks: ClassVar[Pattern] = Units(multiple=1)
    needs: ClassVar = Gram
    translates: ClassVar = True

    ridge: Annotated[float, Field(gt=0)] | Literal["held_out"] = USUAL
    """Penalty on moving a weight, as a share of the mean diagonal of the inputs' covariance; `held_out` tries
    some on every fourth batch of the text, layer by layer."""

    def recover(self, task: Task) -> Recovered:
        """Walk both models side by side, with one block of each resident."""
        dense, pruned = task.dense.store, task.pruned.store
        dense_walk = Walk(dense, task.dense_batches, task.pruned.probe())
        walk = Walk(pruned, task.batches, task.pruned.probe())
        if self.ridge == "held_out" and len(task.batches) < EVERY:
            say(f"of {len(task.batches)} batches none is held out, so the ridge is {USUAL}")
        sites: list[Refit] = []
        done = len(task.draft.done)
        dense_stages = dense_walk.stages("")
        for stage in walk.stages("reconstructing"):
            dense_stage = _reach(dense_stages, task.counterparts[stage.index])
            if stage.index < done:  # of a resumed run: restore its weights and pass the hidden states on
                dense_stage.outputs = dense_stage.run()
                pruned.restore(stage.sites, task.draft.shard(stage.index))
                sites += task.draft.done[stage.index].refits
                continue
            targets = _outputs_of(dense_stage, task.together)
            fits = _fits(stage, dense_stage, targets, task.together, splits=self.ridge == "held_out")
            masked = task.layout is None  # padding needs no mask: its inputs are zero, so its weights stay
            # One at a time: the inputs of the next site depend on the weight of this one.
            refits = [self._refit(pruned, site, *both, masked) for site, both in fits]
            tensors = pruned.written(pruned.tensors(stage.index))
            task.draft.write_block(stage.index, tensors, BlockRecord(refits=refits))
            sites += refits
        task.draft.write_rest(pruned.rest())
        return Recovered({"sites": sites}, walk.logits() if task.pruned.fits_whole() else None)

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


def _reach(stages: Iterable[Stage], block: int) -> Stage:
    """The stage of a block; those before it, which the pruned model lacks, pass their outputs on."""
    return next(stage for stage in stages if stage.index == block)


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
