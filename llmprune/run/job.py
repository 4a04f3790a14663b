"""Everything that is settled before the first weight is touched: recipe, model, plan and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmprune.allocation.base import Budget, Problem
from llmprune.checkpoint import draft, reader, source
from llmprune.checkpoint.source import Source
from llmprune.checkpoint.store import Store
from llmprune.errors import JobError, RequestError
from llmprune.model import layout, widths
from llmprune.model.anatomy import Anatomy
from llmprune.model.layout import Shapes
from llmprune.model.widths import Allowed
from llmprune.recipe import Recipe
from llmprune.recipe_text import load_data
from llmprune.run import plan, report
from llmprune.run.plan import Plan, Resources
from llmprune.tensors.patterns import Units
from llmprune.tensors.statistics import Nothing
from llmprune.text.sources.base import Access, Amount
from llmprune.text.windows import Windows
from llmprune.walk.stage import device_of

PROBE = 32  # tokens that are walked along, so that the reloaded model can be compared


@dataclass(frozen=True)
class Run:
    """How to run, as opposed to what to do: nothing here changes what is asked of the model."""

    out: str | Path | None = None
    resume: bool = False
    device: str = "auto"
    dtype: str = "auto"
    max_memory: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Job:
    """A request that has been checked, with the model opened as far as that takes no weights."""

    recipe: Recipe
    run: Run
    anatomy: Anatomy
    plan: Plan
    resources: Resources
    source: Source | None
    """None when the caller holds the model."""

    allowed: Allowed
    """How many units of every site may stay; empty where loose weights go."""

    @property
    def out(self) -> Path | None:
        """The folder to write, if any."""
        return Path(self.run.out) if self.run.out is not None else None

    @property
    def model_facts(self) -> dict[str, Any]:
        """What the report says of the model."""
        config = self.anatomy.model.config
        return {
            "source": self.source.name if self.source else str(getattr(config, "_name_or_path", "")),
            "revision": self.source.revision if self.source else None,
            "family": self.anatomy.family,
            "parameters": self.plan.parameters,
            "bytes": self.plan.checkpoint_bytes,
        }

    def problem(self, store: Store, batches: list[Tensor]) -> Problem:
        """What the allocator is asked."""
        recipe = self.recipe
        return Problem(
            store.anatomy,
            store,
            batches,
            self.probe(),
            recipe.method,
            recipe.sparsity,
            recipe.needs,
            self.allowed,
            recipe.one_survey,
        )

    def shapes(self, budget: Budget) -> Shapes:
        """The sizes of the pruned model, where whole units go."""
        assert self.recipe.layout is not None
        sites = widths.unit_sites(self.anatomy)
        counts = {site.name: site.units - round(budget[site.name] * site.units) for site in sites}
        return Shapes(self.anatomy, self.recipe.layout, counts, self.recipe.repair.gives_bias)

    @cached_property
    def store(self) -> Store:
        """The model, ready to be walked; opened when it is first asked for."""
        if self.source is None:
            return Store(self.anatomy)
        return reader.open_streamed(
            self.source, self.resources.dtype, self.resources.device, self.recipe.parts
        )

    def windows(self, tokenizer: Any, tokens: Tensor | None) -> Windows | None:
        """The calibration tokens [N, L], or None if neither method nor allocation asks for any.

        Raises:
            RequestError: the model has no such tokens.
        """
        if not self.plan.tokens:
            return None
        found = self._windows(tokenizer, tokens)
        least, most = (int(end) for end in found.tokens.aminmax())
        if least < 0 or most >= self.anatomy.vocabulary:
            raise RequestError(
                "tokenizer" if tokens is None else "tokens",
                f"ids from {least} to {most} were given, and the model's go from 0 to "
                f"{self.anatomy.vocabulary - 1}; use the tokenizer that it was trained with",
            )
        return found

    def _windows(self, tokenizer: Any, tokens: Tensor | None) -> Windows:
        if tokens is not None:
            return Windows(tokens.cpu(), "tokens given by the caller", None)
        text = self.recipe.calibration
        access = Access(
            tokenizer=lambda: self.tokenizer(tokenizer),
            whole_model=self._whole_model,
            store=lambda: self.store,
            identity=lambda: self._identity,
            batch=self.plan.batch,
            vocabulary=self.anatomy.vocabulary,
        )
        return text.source.windows(Amount(text.samples, self.plan.length, text.seed), access)

    def _whole_model(self) -> PreTrainedModel:
        """The dense model, all of it in memory, to write text with.

        Raises:
            JobError: it does not fit.
        """
        if self.source is None:
            return self.anatomy.model
        if not self.fits_whole():
            raise JobError(
                "the model writes calibration text only where it fits into memory as a whole; use "
                "--calibration synthetic, which needs one block at a time, or give a text"
            )
        self.source.fetch()
        how = {"dtype": self.resources.dtype, "trust_remote_code": self.run.trust_remote_code}
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.source.folder, **how)
        return model.to(self.resources.device).eval()

    @property
    def _identity(self) -> dict[str, Any] | None:
        """All that a text of the model's own depends on; None if the caller could change the model."""
        if self.source is None:
            return None
        hardware = {"device": self.resources.name, "dtype": str(self.resources.dtype)}
        return hardware | {"weights": self.source.hashes, "versions": report.versions()}

    def tokenizer(self, given: Any) -> Any:
        """The one that was given, or the checkpoint's."""
        if given is not None:
            return given
        trust = self.run.trust_remote_code
        if self.source is None:
            name = self.model_facts["source"]
            return source.tokenizer(
                name, trust_remote_code=trust, way_out="pass the model's own as tokenizer="
            )
        return source.tokenizer(self.source.folder, trust_remote_code=trust)

    def fits_whole(self) -> bool:
        """Whether the reloaded model would fit into memory as a whole, in the dtype of the walk."""
        limit = min(psutil.virtual_memory().available, self.resources.available)
        return self.plan.parameters * self.resources.dtype.itemsize < limit // 2

    def probe(self) -> Tensor:
        """Token ids [1, T] that depend on nothing but the vocabulary."""
        length = min(PROBE, self.anatomy.context or PROBE)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, self.anatomy.vocabulary, (1, length), generator=generator)


@contextmanager
def within_memory() -> Iterator[None]:
    """Say in a sentence that memory ran out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise JobError(
            "memory ran out although the plan fitted; lower --max-memory, and go on with --resume"
        ) from error


def request(recipe: Any, options: dict[str, Any]) -> tuple[Recipe, Run]:
    """What the caller asked for, told apart into what to do and how to run.

    Args:
        recipe: a Recipe, a mapping, the name of a shipped recipe, a YAML file, or None.
        options: fields of Recipe, which win over the recipe's, and fields of Run.
    """
    how = {field.name for field in dataclasses.fields(Run)}
    run = Run(**{key: value for key, value in options.items() if key in how})
    wanted = {key: value for key, value in options.items() if key not in how}
    if recipe is None:
        data = {}
    elif isinstance(recipe, Recipe):
        data = recipe.resolved()
    else:
        data = dict(recipe) if isinstance(recipe, dict) else load_data(str(recipe))
    return Recipe.parse({**data, **wanted}), run


def checkpoint_job(name: str, recipe: Recipe, run: Run) -> Job:
    """The job for a checkpoint: a folder, a .gguf file or a Hub id."""
    if run.out is not None:
        draft.require_usable(Path(run.out), resume=run.resume)
    found = source.find(name, trust_remote_code=run.trust_remote_code)
    anatomy = reader.blueprint(found, recipe.parts)
    allowed = _allowed(anatomy, recipe)
    length = plan.require_agreement(anatomy, recipe)
    _require_apart(found, run)
    size, stored = found.size
    where = plan.resources(run.device, run.dtype, run.max_memory, stored, text=_needs_text(recipe))
    made = plan.make(anatomy, recipe, where, size, length)
    return Job(_settled(recipe, name, made), run, anatomy, made, where, found, allowed)


def live_job(model: PreTrainedModel, recipe: Recipe, run: Run) -> Job:
    """The job for a model that the caller holds."""
    if run.resume:
        raise RequestError("resume", "only a checkpoint can be gone on with, and a model in memory was given")
    if (run.device, run.dtype) != ("auto", "auto"):
        raise RequestError(
            "device", "a model in memory computes where it is, in its own dtype; move it first"
        )
    if getattr(model.config, "quantization_config", None):
        raise RequestError("model", "the model is quantised; prune the one it was quantised from")
    if recipe.parts is not None and any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise RequestError(
            "model", "units cannot be cut out of a model that accelerate has dispatched; give its folder"
        )
    if run.out is not None:
        draft.require_usable(Path(run.out), resume=False)
    anatomy = Anatomy(model, recipe.parts)
    anatomy.require_coverage()
    allowed = _allowed(anatomy, recipe)
    length = plan.require_agreement(anatomy, recipe)
    where = plan.resources(str(device_of(model)), "auto", run.max_memory, model.dtype, text=False)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    made = plan.make(anatomy, recipe, where, size, length)
    return Job(_settled(recipe, None, made), run, anatomy, made, where, None, allowed)


def _allowed(anatomy: Anatomy, recipe: Recipe) -> Allowed:
    """How many units of every site may stay; empty where loose weights go.

    Raises:
        RequestError: not so few as asked, or not in this layout.
    """
    found = _widths(anatomy, recipe, recipe.pattern.multiple) if isinstance(recipe.pattern, Units) else {}
    recipe.allocation.require_possible(anatomy, found, recipe.sparsity)
    return found


def _widths(anatomy: Anatomy, recipe: Recipe, multiple: int) -> Allowed:
    assert recipe.layout is not None
    layout.require_possible(anatomy, recipe.layout, biased=recipe.repair.gives_bias)
    if recipe.sparsity:  # a recovery walks units and cuts none
        layout.require_holding(anatomy, recipe.layout)
    alike = recipe.layout == "uniform"
    return widths.allowed(anatomy, multiple, lambda site, n: not alike or layout.fits(anatomy, site, n))


def _settled(recipe: Recipe, name: str | None, made: Plan) -> Recipe:
    """The recipe with what only the model could tell."""
    text = recipe.calibration.model_copy(update={"length": made.length})
    return recipe.model_copy(update={"model": name, "calibration": text})


def _needs_text(recipe: Recipe) -> bool:
    return recipe.needs is not Nothing or bool(recipe.allocation.needs_text)


def _require_apart(found: Source, run: Run) -> None:
    if run.out is not None and Path(run.out).absolute() == found.folder.absolute():
        raise RequestError("out", f"{run.out} is the model's own folder; name another")
