"""What a run will need, from the configuration and the file headers alone; refuses what cannot fit."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import convert_file_size_to_int

from llmprune.errors import JobError, RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites import Site
from llmprune.recipe import Recipe
from llmprune.tensors.patterns import NofM
from llmprune.tensors.statistics import Nothing
from llmprune.walk.stage import UNIT_SAMPLE

GIB = 1 << 30
LENGTH = 2048  # tokens of a calibration window unless asked otherwise
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}  # small enough for the caches, large enough to be fast
SCRATCH = 6  # copies of the largest matrix, in float32, that scoring and selecting hold at a time
SPARE = 0.8  # share of the available memory that a plan may fill


@dataclass(frozen=True)
class Resources:
    """Where a run computes, in which dtype, and how much memory it may take there."""

    device: torch.device
    dtype: torch.dtype
    available: int

    @property
    def name(self) -> str:
        """The hardware that the last bits of a result depend on."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes. The run holds one block, the calibration activations, and a layer's statistic."""

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
    lessons: int
    """Forwards that the method takes to learn."""
    redraws: int
    """Forwards that it takes to draw the calibration tokens."""
    writing_bytes: int
    """The whole model, where it writes its own calibration text."""
    surveys: bool
    """Whether the allocation takes a forward of its own."""

    together: bool
    """Whether all batches fit in memory inside one block, so that `layer` propagation takes one forward."""
    checkpoint_bytes: int
    block_bytes: int
    activation_bytes: int
    statistic_bytes: int
    scratch_bytes: int
    host_bytes: int
    """In host memory, wherever the blocks compute: hidden states, and what is being written."""
    needed_bytes: int
    available_bytes: int
    disk_bytes: int
    device: str
    dtype: str

    def rows(self) -> list[tuple[str, str]]:
        """The plan as a table."""
        if self.tokens:
            windows = f"{self.tokens} tokens in windows of {self.length}, batches of {self.batch}"
            text = f"{windows}; {self._forwards} per block"
            if self.writing_bytes:
                text += f", once the whole model ({_gib(self.writing_bytes)}) has written them"
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
        learning = f", and {self.lessons} to learn" if self.lessons else ""
        drawing = f", {self.redraws} to draw the tokens" if self.redraws else ""
        return self._walks + drawing + learning + (", and one for the budgets" if self.surveys else "")

    @property
    def _walks(self) -> str:
        if self.propagation == "layer":
            return "one forward" if self.together else "a forward for each group of layers"
        return "two forwards" if self.propagation == "block" else "one forward"

    @property
    def execution(self) -> dict[str, Any]:
        """The part that decides in which pieces things are computed, and so the last bits of the result."""
        return {"batch": self.batch, "together": self.together}

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
        host = psutil.virtual_memory().available
        if self.host_bytes > host:
            raise JobError(
                f"the hidden states and the files being written need {_gib(self.host_bytes)} of host memory "
                f"and {_gib(host)} are available; lower --samples or --length"
            )
        if out is not None:
            place = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
            written = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
            free = shutil.disk_usage(place).free + written
            if free < self.disk_bytes:
                raise JobError(
                    f"{out} needs {_gib(self.disk_bytes)} of disk and {_gib(free)} are free; "
                    "free some space or choose another --out"
                )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def require_agreement(anatomy: Anatomy, recipe: Recipe) -> int:
    """Refuse what this model cannot do, and tell the calibration length.

    Raises:
        RequestError: the text windows are longer than the model's context, or a layer's inputs cannot be
            cut into groups of M.
    """
    asked, context = recipe.calibration.length, anatomy.context or LENGTH
    if asked is not None and anatomy.context and asked > context:
        raise RequestError(
            "calibration.length",
            f"{asked} tokens were asked, and the model's context is {context}; ask for less",
        )
    if isinstance(recipe.pattern, NofM):
        for site in anatomy.sites:
            if site.inputs % recipe.pattern.m:
                raise RequestError(
                    "pattern",
                    f"{site.name} has {site.inputs} inputs, which is not a multiple of {recipe.pattern.m}; "
                    "use another pattern",
                )
    return asked or min(LENGTH, context)


def make(anatomy: Anatomy, recipe: Recipe, how: Resources, checkpoint_bytes: int, length: int) -> Plan:
    """Work out what a run will need.

    Args:
        anatomy: of the model; its weights may be on the meta device.
        recipe: what was asked.
        how: where it will run.
        checkpoint_bytes: of all weights, as stored.
        length: tokens per calibration window.
    """
    width = torch.finfo(how.dtype).bits // 8
    parameters = sum(p.numel() for p in anatomy.model.parameters())
    block = max(sum(p.numel() for p in b.parameters()) for b in anatomy.blocks)
    needs_text = recipe.needs is not Nothing or recipe.allocation.needs_text
    tokens = recipe.calibration.samples * length if needs_text else 0
    batch = max(1, TOKENS_AT_ONCE[how.device.type] // length)
    first = anatomy.block_sites(0)
    wide = anatomy.block_outputs + 2 * anatomy.hidden_size
    hidden = 2 * tokens * anatomy.hidden_size * width
    at_once = min(batch * length, tokens) * wide * width
    statistic = _statistic_bytes(recipe, first) + _survey_bytes(recipe, anatomy.sites)
    scratch = SCRATCH * 4 * max(site.inputs * site.outputs for site in anatomy.sites)
    stored = checkpoint_bytes / parameters
    outputs = int(2 * block * stored)  # the pruned block as it is stored, and as the file is built from it
    outside = parameters - sum(p.numel() for b in anatomy.blocks for p in b.parameters())
    written = max(outputs, int(2 * outside * stored))  # never both at a time
    on_host = hidden + written
    on_device = block * width + statistic + scratch + outside * width
    waiting = tokens * wide * width
    base = on_device + (on_host if how.device.type == "cpu" else 0)
    together = recipe.propagation == "layer" and base + waiting <= SPARE * how.available
    return Plan(
        family=anatomy.family,
        blocks=len(anatomy.blocks),
        sites=len(anatomy.sites),
        coverage=anatomy.coverage,
        parameters=parameters,
        prunable_parameters=sum(site.weights for site in anatomy.sites),
        tokens=tokens,
        length=length,
        batch=batch,
        propagation=recipe.propagation,
        lessons=recipe.method.lessons,
        redraws=recipe.calibration.source.forwards,
        writing_bytes=parameters * width if tokens and recipe.calibration.source.needs_whole_model else 0,
        surveys=_surveys_apart(recipe),
        together=together,
        checkpoint_bytes=checkpoint_bytes,
        block_bytes=block * width,
        activation_bytes=hidden + (waiting if together else at_once),
        statistic_bytes=statistic,
        scratch_bytes=scratch + written,
        host_bytes=on_host,
        needed_bytes=base + (waiting if together else at_once),
        available_bytes=how.available,
        disk_bytes=checkpoint_bytes,
        device=str(how.device),
        dtype=str(how.dtype).removeprefix("torch."),
    )


def _statistic_bytes(recipe: Recipe, sites: list[Site]) -> int:
    """One layer's statistic under `layer` propagation, those of a whole block otherwise."""
    sizes: list[int] = [recipe.needs.bytes_for(site.inputs) for site in sites]
    return max(sizes) if recipe.propagation == "layer" else sum(sizes)


def _surveys_apart(recipe: Recipe) -> bool:
    """Whether the allocation measures the dense model without pruning being able to use what it learns."""
    measures = recipe.allocation.compares_scores and recipe.method.needs is not Nothing
    return bool(recipe.allocation.needs_text or measures) and not recipe.one_survey


def _survey_bytes(recipe: Recipe, sites: list[Site]) -> int:
    """What an allocation that surveys the units keeps for pruning: summaries and samples of all sites."""
    if not recipe.one_survey:
        return 0
    return sum(recipe.needs.bytes_for(s.inputs) + 4 * UNIT_SAMPLE * s.inputs for s in sites)


def resources(
    device: str, dtype: str, max_memory: str | None, stored: torch.dtype, *, text: bool
) -> Resources:
    """What `auto` stands for on this machine.

    `auto` computes on the GPU if there is one; in the checkpoint's dtype there, and in float32 on the CPU,
    where half precision is slow. Without calibration nothing is computed but scores, and the checkpoint's
    dtype will do.

    Raises:
        RequestError: there is no such device, dtype or size.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise RequestError("device", f"{device!r} is not auto, cpu, cuda or cuda:N") from error
    if where.type not in TOKENS_AT_ONCE:
        raise RequestError("device", f"{device!r} is not auto, cpu, cuda or cuda:N")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            "device", f"{device!r} was asked, and {torch.cuda.device_count()} CUDA devices were found"
        )
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    choices["auto"] = torch.float32 if where.type == "cpu" and text else stored
    if dtype not in choices:
        raise RequestError("dtype", f"{dtype!r} is not one of auto, float32, bfloat16, float16")
    free = psutil.virtual_memory().available if where.type == "cpu" else torch.cuda.mem_get_info(where)[0]
    return Resources(where, choices[dtype], min(free, _bytes(max_memory)) if max_memory else free)


def _bytes(size: str) -> int:
    try:
        return int(convert_file_size_to_int(size))
    except ValueError as error:
        raise RequestError("max_memory", f"{size!r} is not a size such as 8GiB") from error
