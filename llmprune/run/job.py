"""Check a request against its model, and plan it, before the first weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmprune.checkpoint import draft, reader, source
from llmprune.checkpoint.opened import Opened
from llmprune.checkpoint.resources import resources
from llmprune.checkpoint.source import Source
from llmprune.errors import JobError, RequestError, of_step
from llmprune.model.anatomy import Anatomy
from llmprune.model.independence import keeping
from llmprune.model.shapes import Shapes
from llmprune.model.widths import Allowed, Budget
from llmprune.recipe import Recipe
from llmprune.report import CalibrationRecord, ModelFacts, Report
from llmprune.run import learned, plan, scored, tokens
from llmprune.run.asked import Run
from llmprune.run.plan import Plan
from llmprune.run.waiting import placed, with_waiting
from llmprune.text.windows import Windows
from llmprune.vocabulary.choice import Kept
from llmprune.walk.demand import Demand
from llmprune.walk.pausing import device_of
from llmprune.walk.scores import Scores


@dataclass(frozen=True)
class Job:
    """A request that has been checked against its model."""

    recipe: Recipe
    """With the model's name and the length of a window filled in."""

    run: Run
    model: Opened
    plan: Plan
    allowed: Allowed
    """How many units of every site may stay; empty where single weights go."""

    kept: Kept | None = None
    """The tokens that stay, where rows of the vocabulary go."""

    scores: Scores | None = None
    """What was measured before, if it is pruned from that."""

    steps: tuple[Report, ...] = ()
    """Of the steps before this one."""

    @property
    def facts(self) -> ModelFacts:
        """The model that was pruned first."""
        return self.steps[0].model if self.steps else self.model.facts

    def shapes(self, budget: Budget) -> Shapes:
        """The sizes of the pruned model."""
        asked = dataclasses.replace(self.recipe.asked, kept=self.kept)
        return self.recipe.sites.shapes(self.model.anatomy, asked, budget)

    def text(self, windows: Windows | None) -> CalibrationRecord | None:
        """The text that is, or was, measured on."""
        if windows is not None:
            return windows.record()
        return self.scores.text if self.scores else None

    def probe(self) -> Tensor:
        """Token ids [1, T] that the pruned model knows, too."""
        ids = self.model.probe()
        return torch.tensor(self.kept.rows)[ids % len(self.kept.rows)] if self.kept else ids


@contextmanager
def within_memory() -> Iterator[None]:
    """Turn running out of memory into one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise JobError(
            "memory ran out although the plan fitted; lower --max-memory, and rerun with --resume"
        ) from error


def require_steps(model: str | PreTrainedModel, recipe: Recipe, run: Run) -> None:
    """Refuse a folder that cannot be written, and steps that the model cannot take.

    Raises:
        RequestError: it names the step, where there are several.
    """
    if run.folder is not None:
        draft.require_usable(run.folder, resume=run.resume)
    if not recipe.before:
        return
    if run.scores is not None:
        raise RequestError("scores", "they are of one model, and a recipe with steps was asked; prune once")
    with of_step(1):
        blank = _blank(model, recipe.every_step[0], run)
    for number, step in enumerate(recipe.every_step, 1):
        with of_step(number):
            if not isinstance(model, str):
                _require_live(model, step, run)
            anatomy = Anatomy(blank, step.sites)
            _agreed(anatomy, step)
        if going := step.sites.going(anatomy, step.asked):
            blank = keeping(anatomy, [n for n in range(len(anatomy.blocks)) if n not in going]).model


def _blank(model: str | PreTrainedModel, recipe: Recipe, run: Run) -> PreTrainedModel:
    """A model whose sizes the first step finds."""
    if not isinstance(model, str):
        return model
    found = source.find(model, trust_remote_code=run.trust_remote_code)
    return reader.blueprint(found, recipe.sites).model


def checkpoint_job(name: str, recipe: Recipe, run: Run) -> Job:
    """The job for a checkpoint: a folder, a .gguf file or a Hub id."""
    found = source.find(name, trust_remote_code=run.trust_remote_code)
    anatomy = reader.blueprint(found, recipe.sites)
    allowed, length = _agreed(anatomy, recipe)
    require_apart(found, run)
    where = resources(run.device, run.dtype, run.max_memory, found.size[1], text=recipe.needs_text)
    kept = tokens.kept(found, recipe, anatomy)
    model = Opened(anatomy, found, where, run.trust_remote_code)
    return dataclasses.replace(_job(recipe, run, model, allowed, length, name), kept=kept)


def live_job(model: PreTrainedModel, recipe: Recipe, run: Run) -> Job:
    """The job for a model that the caller holds."""
    _require_live(model, recipe, run)
    anatomy = Anatomy(model, recipe.sites)
    recipe.sites.require_coverage(anatomy)
    allowed, length = _agreed(anatomy, recipe)
    where = resources(str(device_of(model)), "auto", run.max_memory, model.dtype, text=False)
    return _job(recipe, run, Opened(anatomy, None, where), allowed, length, None)


def _require_live(model: PreTrainedModel, recipe: Recipe, run: Run) -> None:
    """Refuse what only a checkpoint can take.

    Raises:
        RequestError: it says what that is.
    """
    if recipe.sites.shares == "rows":
        raise RequestError(
            "model", "its tokenizer is cut with it, and a model in memory was given; give its folder"
        )
    if run.scores is not None:
        raise RequestError("scores", "a model in memory was given, and they are of a checkpoint; give that")
    if run.resume:
        raise RequestError("resume", "only a checkpoint can be resumed, and a model in memory was given")
    if (run.device, run.dtype, run.device_map) != ("auto", "auto", None):
        raise RequestError(
            "device", "a model in memory computes where it is, in its own dtype; move it first"
        )
    _require_whole(model)
    if getattr(model.config, "quantization_config", None):
        raise RequestError("model", "the model is quantised; prune the one it was quantised from")
    if recipe.sites.changes_sizes and any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise RequestError(
            "model",
            f"{recipe.pattern} cannot be cut out of a model that accelerate has dispatched; give its folder",
        )


def _require_whole(model: PreTrainedModel) -> None:
    """Refuse a model of which this process holds a part.

    Raises:
        RequestError: it is sharded.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel  # takes a second
    from torch.distributed.tensor import DTensor

    parts = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    wrapped = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    if parts or wrapped or getattr(model, "tp_size", None):
        raise RequestError(
            "model",
            "tensor parallelism or FSDP has sharded it, and each process holds a part of every matrix; give "
            "its folder, whose calibration text several processes share",
        )


def _agreed(anatomy: Anatomy, recipe: Recipe) -> tuple[Allowed, int]:
    """How many units of every site may stay, and the tokens of a window.

    Raises:
        RequestError: this model cannot do what was asked.
    """
    allowed = recipe.sites.allowed(anatomy, recipe.asked)
    recipe.allocation.require_possible(anatomy, allowed, recipe.sparsity)
    length = plan.require_length(anatomy, recipe.calibration.length)
    plan.require_groups(anatomy, recipe.pattern)
    learned.require_readable(recipe.method)
    return allowed, length


def _job(recipe: Recipe, run: Run, model: Opened, allowed: Allowed, length: int, name: str | None) -> Job:
    text = recipe.calibration.model_copy(update={"length": length})
    share = _share(recipe, model.anatomy)
    settled = recipe.model_copy(update={"model": name, "calibration": text, "sparsity": share})
    demand, scores = settled.demand(len(model.anatomy.blocks), length), None
    if run.scores is not None:
        demand, scores = Demand(settled.needs, "dense"), scored.opened(Path(run.scores), settled, model)
    made = plan.make(model.anatomy, demand, model.resources, model.bytes, length)
    if run.device_map is not None:
        model = placed(model, run.device_map, made.needed_bytes, made.host_bytes)
        made = with_waiting(made, model)
    return Job(settled, run, model, made, allowed, scores=scores)


def _share(recipe: Recipe, anatomy: Anatomy) -> float:
    """The share that goes.

    Raises:
        RequestError: the pattern says what goes, and another sparsity was asked.
    """
    share = recipe.sites.sparsity(anatomy, recipe.asked)
    if recipe.pattern.settles_sparsity and recipe.sparsity not in (0, share):
        raise RequestError(
            "sparsity",
            f"{recipe.sparsity:g} was asked, and {recipe.pattern} says itself what goes ({share:.4g}); leave "
            "the sparsity out",
        )
    return share


def require_apart(found: Source, run: Run) -> None:
    """Refuse to write into the folder that is read.

    Raises:
        RequestError: it is the same.
    """
    if run.folder is not None and run.folder.absolute() == found.folder.absolute():
        raise RequestError("out", f"{run.out} is the model's own folder; name another")
