"""Plan memory, disk and forward passes from the config and the file headers; refuse what cannot fit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from llmprune import ranks
from llmprune.checkpoint import disk
from llmprune.checkpoint.resources import Resources
from llmprune.errors import JobError, RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.experts import is_mixture
from llmprune.model.sites import linear
from llmprune.model.unit_site import sizes
from llmprune.patterns.base import Pattern
from llmprune.tensors.statistics import Gram
from llmprune.walk.demand import Demand

GIB = 1 << 30
LENGTH = 2048  # tokens of a calibration window unless asked otherwise
AT_ONCE_CPU, AT_ONCE = 2048, 16384  # tokens: few enough for a CPU's caches, enough for an accelerator
SCRATCH = 6  # copies of the largest matrix, in float32, that scoring and selecting hold at a time
SPARE = 0.8  # share of the available memory that a plan may fill


@dataclass(frozen=True)
class Plan:
    """Sizes are in bytes. A run holds one block, the calibration activations and a layer's statistic."""

    family: str
    blocks: int
    sites: int
    coverage: float
    parameters: int
    prunable_parameters: int
    tokens: int
    length: int
    batch: int
    propagation: str
    training_passes: int
    """Forward passes over the calibration set to train the method."""
    drawing_passes: int
    """Forward passes over the calibration set to draw its tokens."""
    generating_bytes: int
    """The whole model, where it generates its own calibration text."""
    allocation_passes: int
    """Forward passes of the allocation's own."""
    allocation_tokens: int
    """Tokens of each of these."""
    allocation_trials: int
    """Times that the whole model is pruned to choose a budget."""

    together: bool
    """Whether all batches fit in memory inside one block, so that `layer` propagation takes one forward
    pass."""
    checkpoint_bytes: int
    block_bytes: int
    activation_bytes: int
    statistic_bytes: int
    scratch_bytes: int
    host_bytes: int
    """Held in host memory whatever the device: hidden states, and the shard that is being written."""
    needed_bytes: int
    available_bytes: int
    disk_bytes: int
    device: str
    dtype: str

    def rows(self) -> list[tuple[str, str]]:
        """The plan as a table."""
        if self.tokens:
            windows = f"{self.tokens} tokens in windows of {self.length}, batches of {self.batch}"
            text = f"{windows}; {self._forwards}"
            if self.generating_bytes:
                text += f", once the whole model ({_gib(self.generating_bytes)}) has generated them"
        else:
            text = "none needed"
        size, free = _gib(self.checkpoint_bytes), _gib(self.available_bytes)
        return [
            ("model", f"{self.family}, {self.parameters / 1e6:.1f} M parameters, {size}"),
            ("blocks", f"{self.blocks}, {_gib(self.block_bytes)} each while resident"),
            ("sites", f"{self.sites}, {self.coverage:.1%} of the block weights"),
            ("calibration", text),
            ("activations", _gib(self.activation_bytes)),
            ("statistics", _gib(self.statistic_bytes)),
            ("memory", f"{_gib(self.needed_bytes)} needed, {free} available on {self.device}"),
            ("disk", f"{_gib(self.disk_bytes)} will be written"),
        ]

    @property
    def _forwards(self) -> str:
        training = f", and {self.training_passes} to train the method" if self.training_passes else ""
        drawing = f", {self.drawing_passes} to draw the tokens" if self.drawing_passes else ""
        return self._walks + drawing + training + self._budgets

    @property
    def _budgets(self) -> str:
        if not self.allocation_passes:
            return ""
        passes = "one" if self.allocation_passes == 1 else str(self.allocation_passes)
        over = f" over {self.allocation_tokens} tokens" if self.allocation_tokens < self.tokens else ""
        tried = f", and {self.allocation_trials} times as much to try budgets"
        return f", and {passes}{over} for the budgets{tried if self.allocation_trials else ''}"

    @property
    def _walks(self) -> str:
        if self.propagation == "layer":
            return "one forward pass" if self.together else "a forward pass for each group of layers"
        return "two forward passes" if self.propagation == "block" else "one forward pass"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return dataclasses.asdict(self)

    def require_fit(self, out: Path | None) -> None:
        """Refuse a run that cannot fit into memory or onto the disk.

        Raises:
            JobError: it says what is too large and what to change.
        """
        if self.needed_bytes > self.available_bytes:
            raise JobError(
                f"the plan needs {_gib(self.needed_bytes)} of memory and {_gib(self.available_bytes)} are "
                f"available on {self.device}; the activations take {_gib(self.activation_bytes)} (lower "
                f"--samples or --length), a block {_gib(self.block_bytes)} (try --dtype bfloat16)"
            )
        host = psutil.virtual_memory().available // ranks.neighbours()
        if self.host_bytes > host:
            raise JobError(
                f"the hidden states and the files being written need {_gib(self.host_bytes)} of host memory "
                f"and {_gib(host)} are available; lower --samples or --length"
            )
        if out is not None:
            free = disk.free(out) + sum(path.stat().st_size for path in out.rglob("*.safetensors"))
            if free < self.disk_bytes:
                raise JobError(
                    f"{out} needs {_gib(self.disk_bytes)} of disk and {_gib(free)} are free; "
                    "free some space or choose another --out"
                )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def require_length(anatomy: Anatomy, asked: int | None) -> int:
    """Settle the length of a calibration window in tokens.

    Raises:
        RequestError: more were asked than the model's context holds.
    """
    context = anatomy.context or LENGTH
    if asked is not None and anatomy.context and asked > context:
        raise RequestError(
            "calibration.length",
            f"{asked} tokens were asked, and the model's context is {context}; ask for less",
        )
    return asked or min(LENGTH, context)


def require_groups(anatomy: Anatomy, pattern: Pattern) -> None:
    """Refuse an N:M pattern that does not divide the inputs of a layer.

    Raises:
        RequestError: it names the first such layer.
    """
    for site in anatomy.sites if pattern.group else ():
        if site.inputs % pattern.group:
            raise RequestError(
                "pattern",
                f"{site.name} has {site.inputs} inputs, which is not a multiple of {pattern.group}; "
                "use another pattern",
            )


@dataclass(frozen=True)
class _Sizes:
    """Sizes of one model in bytes, in the dtype of the computation unless said otherwise."""

    block: int
    """Weights of the largest block; of experts, also as the checkpoint has them."""
    outside: int
    """Weights outside the blocks."""
    written: int
    """The largest shard with its copy while it is written, in the dtype of the checkpoint."""
    scratch: int
    """Temporary matrices of scoring and selecting."""
    hidden: int
    """Hidden state of one token."""
    inside: int
    """Activations of one token inside a block."""


def _sizes(anatomy: Anatomy, how: Resources, checkpoint_bytes: int) -> _Sizes:
    blocks = [sum(p.numel() for p in b.parameters()) for b in anatomy.blocks]
    width, stored = how.dtype.itemsize, checkpoint_bytes / anatomy.parameters
    outside = anatomy.parameters - sum(blocks)
    # Experts are joined from many tensors, and what they are joined into is kept until it is written.
    joined = int(max(blocks) * stored) if any(map(is_mixture, anatomy.blocks)) else 0
    return _Sizes(
        block=max(blocks) * width + joined,
        outside=outside * width,
        # Twice: the pruned tensors, and the copy that safetensors makes of them. Blocks and the rest are
        # written one after the other, so the larger counts.
        written=max(int(2 * max(blocks) * stored), int(2 * outside * stored)),
        scratch=SCRATCH * 4 * max(site.inputs * site.outputs for site in anatomy.sites),
        hidden=anatomy.hidden_size * width,
        inside=(_block_outputs(anatomy) + 2 * anatomy.hidden_size) * width,
    )


def make(anatomy: Anatomy, demand: Demand, how: Resources, checkpoint_bytes: int, length: int) -> Plan:
    """Make the plan of a run.

    Args:
        anatomy: of the model; its weights may be on the meta device.
        demand: what the run gathers, and how often it walks the model.
        how: where it will run.
        checkpoint_bytes: of all weights, as stored.
        length: tokens per calibration window.
    """
    sizes = _sizes(anatomy, how, checkpoint_bytes)
    tokens = demand.samples * length
    batch = max(1, (AT_ONCE_CPU if how.device.type == "cpu" else AT_ONCE) // length)
    statistic = _statistic_bytes(demand, anatomy)
    # Hidden states before and after the block. They wait in host memory between blocks.
    streams = 2 if demand.follows_dense else 1
    passing = -(-tokens // ranks.count()) if demand.walks else 0
    waiting_states = (2 * streams * passing + demand.held_tokens) * sizes.hidden
    on_host = waiting_states + sizes.written
    # A trial holds the dense block beside the pruned one, as does a run that follows the dense model.
    resident = (2 if demand.measuring.trials or demand.follows_dense else 1) * sizes.block
    on_device = resident + statistic + sizes.scratch + sizes.outside
    base = on_device + (on_host if how.device.type == "cpu" else 0)
    waiting = passing * sizes.inside
    together = demand.propagation == "layer" and base + waiting <= SPARE * how.available
    inside = waiting if together else min(batch * length, tokens) * sizes.inside
    return Plan(
        family=anatomy.family,
        blocks=len(anatomy.blocks),
        sites=len(anatomy.sites),
        coverage=anatomy.coverage,
        parameters=anatomy.parameters,
        prunable_parameters=sum(site.weights for site in anatomy.sites),
        tokens=tokens,
        length=length,
        batch=batch,
        propagation=demand.propagation,
        training_passes=demand.training_passes,
        drawing_passes=demand.drawing_passes,
        generating_bytes=anatomy.parameters * how.dtype.itemsize if tokens and demand.generates_text else 0,
        allocation_passes=demand.measuring.passes,
        allocation_tokens=demand.measuring.tokens,
        allocation_trials=demand.measuring.trials,
        together=together,
        checkpoint_bytes=checkpoint_bytes,
        block_bytes=sizes.block,
        activation_bytes=waiting_states + inside,
        statistic_bytes=statistic,
        scratch_bytes=sizes.scratch + sizes.written,
        host_bytes=on_host,
        needed_bytes=base + inside,
        available_bytes=how.available,
        disk_bytes=checkpoint_bytes + demand.measuring.levels * _solved_bytes(anatomy, checkpoint_bytes),
        device=str(how.device),
        dtype=how.dtype_name,
    )


def _solved_bytes(anatomy: Anatomy, checkpoint_bytes: int) -> int:
    """At most the size of the solved weights of all sites, as stored."""
    stored = checkpoint_bytes / anatomy.parameters
    return int(stored * sum(site.inputs * site.outputs for site in anatomy.sites))


def _block_outputs(anatomy: Anatomy) -> int:
    """Outputs of all layers of one block together, per token, where they are most."""
    config = anatomy.model.config.get_text_config(decoder=True)
    return max(linear.outputs(block, config) for block in anatomy.blocks)


def _statistic_bytes(demand: Demand, anatomy: Anatomy) -> int:
    """Statistics held at a time: of one site under `layer` propagation, else of a block; or of all sites."""
    of_block = max if demand.propagation == "layer" else sum
    blocks = [anatomy.block_sites(number) for number in range(len(anatomy.blocks))]
    at_once = max(of_block([demand.needs.bytes_for(s.inputs) for s in sites]) for sites in blocks if sites)
    if demand.refits_layers:
        layers = [layer for block in anatomy.blocks for _, layer in linear.layers_of(block)]
        at_once = max(at_once, Gram.bytes_for(max(sizes(layer)[1] for layer in layers)))
    if not demand.holds_all:
        return at_once
    sample = 4 * anatomy.kind.sample_tokens
    return at_once + sum(demand.needs.bytes_for(s.inputs) + sample * s.inputs for s in anatomy.sites)
