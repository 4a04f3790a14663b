"""A recipe: what to remove from which model, checked before anything is read or written."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llmprune import plugins
from llmprune.allocation.base import Allocator
from llmprune.errors import RequestError
from llmprune.methods.base import Method, Propagation, PruningMethod, Target
from llmprune.model.shapes import Layout
from llmprune.model.sites.base import Sites, SizeRequest, sites_of
from llmprune.patterns import base as patterns
from llmprune.patterns.base import Pattern
from llmprune.plugins import Options, name_of
from llmprune.recipe.parts import (
    ALLOCATIONS,
    METHODS,
    SERVED,
    fitting,
    recovery_of,
    with_default,
    with_method,
)
from llmprune.recipe.steps import require_recoverable, unfolded
from llmprune.recovery.base import Recovery
from llmprune.repair.base import LayerRepair, Repair
from llmprune.tensors.cross_gram import CrossGram
from llmprune.tensors.several import joined
from llmprune.tensors.statistics import Nothing, Statistic
from llmprune.text.calibration import Calibration, with_defaults
from llmprune.text.windows import require_held_out
from llmprune.walk.demand import Demand, Measuring


class Recipe(BaseModel):
    """What to remove, and from which model, in about ten lines of YAML.

    Every part is a name, or a mapping of its `name` and options: `method: {name: sparsegpt, damping: 0.02}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    version: int = Field(1, ge=1)
    """Bumped whenever the recipe's numbers change."""
    model: str | None = None
    """A folder, a .gguf file or a Hub id; the command line's wins."""
    method: InstanceOf[PruningMethod]
    """Which weights go, and whether the others change: a file of `llmprune/methods/`."""
    pattern: InstanceOf[Pattern]
    """A file of `llmprune/patterns/`: `unstructured`, N:M, `units`, `blocks` or `vocabulary`."""
    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the sites' parameters that go, 0 to 1; an N:M pattern fixes it."""
    allocation: InstanceOf[Allocator]
    """How much goes where: a file of `llmprune/allocation/`."""
    repair: InstanceOf[LayerRepair]
    """How the remaining units compensate: a file of `llmprune/repair/`."""
    layout: Layout | None = None
    """How blocks of different sizes are written; None for single weights, which change no sizes."""
    recovery: InstanceOf[Recovery] | None = None
    """What improves the result afterwards: a file of `llmprune/recovery/`."""
    propagation: Propagation = "layer"
    """Outputs that calibrate later layers: of the dense model, or of pruned blocks or layers."""
    target: Target = "pruned"
    """Outputs that a layer is fitted to: of its dense weight on its inputs now, or in the dense model."""
    calibration: Calibration
    """Which text calibrates."""
    before: tuple[Recipe, ...] = ()
    """Steps that come first, each applied to the result of the one before; YAML writes `steps:`."""

    @model_validator(mode="before")
    @classmethod
    def _build(cls, data: object) -> object:
        """Replace every name by what it stands for, and fill in what depends on the method."""
        data = with_method(unfolded(data, cls.parse))
        text = data.get("calibration", {})
        seed = text.get("seed") if isinstance(text, dict) else None
        usual = {"seed": seed} if type(seed) is int else {}  # any other is the calibration's to refuse
        method = plugins.build("method", METHODS, data["method"], Method, usual)
        listed = patterns.with_usual(data.get("pattern"), method.pattern, method.compete).allocation
        budget = listed or method.allocation
        allocation = with_default(data.get("allocation", budget), budget)
        repair = with_default(data.get("repair", method.repair), method.repair)
        allocation = plugins.build("allocation", ALLOCATIONS, allocation, Allocator)
        repair = plugins.build("repair", "llmprune.repair", repair, Repair)
        competing = "matrix" if allocation.compares_scores else method.compete
        pattern = patterns.with_usual(data.get("pattern"), method.pattern, competing)
        data |= {"method": method, "allocation": allocation, "repair": repair, "pattern": pattern}
        if data.get("recovery") is not None:
            data["recovery"] = recovery_of(data["recovery"])
        if isinstance(text, dict):
            data["calibration"] = with_defaults(text, method.calibration)
        data.setdefault("target", method.target)
        data.setdefault("propagation", _propagation(method, pattern, data["target"]))
        if data.get("layout") is None:
            data["layout"] = sites_of(pattern).default_layout(uneven=allocation.uneven)
        if pattern.settles_sparsity:
            data.setdefault("sparsity", 0.0)  # follows from the pattern, once the model is known
        if pattern.only_sparsity is not None:
            data["sparsity"] = patterns.only_sparsity(pattern, data.get("sparsity", pattern.only_sparsity))
        return data

    @field_validator("allocation")
    @classmethod
    def _settled(cls, allocation: Allocator, info: ValidationInfo) -> Allocator:
        """Fill in what depends on the fields above, unless one of them is wrong."""
        if not {"method", "pattern", "sparsity"} <= info.data.keys():
            return allocation
        shares = sites_of(info.data["pattern"]).shares
        return allocation.settled(info.data["method"], shares, info.data["sparsity"])

    @model_validator(mode="after")
    def _agree(self) -> Self:
        self._agree_on_kind()
        require_recoverable((*self.before, self))
        name = name_of(self.allocation)
        needed = self.pattern.allocation
        if needed is not None and name != needed:
            raise RequestError(
                "allocation", f"{name} was asked, and {self.pattern} says itself what goes; leave one out"
            )
        if needed is None and self.allocation.follows_list:
            raise RequestError("allocation", f"{name} removes what pattern.remove lists; set that")
        if self.pattern.only_sparsity is not None and self.allocation.uneven:
            raise RequestError(
                "allocation",
                f"{name} gives sites different sparsities, which {self.pattern} cannot have; use uniform",
            )
        if self.target == "dense" and (self.propagation != "layer" or self.sites.shares != "weights"):
            raise RequestError(
                "target",
                f"dense was asked for {self.pattern} with {self.propagation} propagation, and serves single "
                "weights with layer propagation; leave it out",
            )
        if self.sites.shares == "experts" and self.propagation == "layer":
            raise RequestError(
                "propagation",
                "layer measures what enters before anything computes, and experts are known by what they put "
                "out; use block or dense",
            )
        if self.allocation.holds_out:
            require_held_out(self.calibration.samples)
        for part in self.allocation.parts:
            if part.compares_scores and not self.method.scores_alone():
                raise RequestError(
                    "allocation",
                    f"{name_of(part)} compares scores before pruning, and {name_of(self.method)} decides "
                    "while it prunes; use uniform, erk or owl",
                )
        return self

    def _agree_on_kind(self) -> None:
        """Refuse what does not go with the kind of site that the pattern prunes."""
        method, repair = map(name_of, (self.method, self.repair))
        shares = self.sites.shares
        if shares not in self.method.serves:
            kinds = " or ".join(SERVED[kind] for kind in self.method.serves)
            raise RequestError(
                "pattern",
                f"{method} prunes {kinds}, and {self.pattern} was asked; use {fitting(self.method)}",
            )
        for part in (self.allocation, *self.allocation.parts):
            if shares not in part.serves:
                use = "sleb" if shares == "blocks" else "uniform"
                raise RequestError("allocation", f"{name_of(part)} cannot share out {shares}; use {use}")
        if shares not in self.repair.serves:
            kinds = " or ".join(SERVED[kind] for kind in self.repair.serves)
            raise RequestError(
                "repair", f"{repair} compensates {kinds}, not {self.pattern}; use --repair none"
            )
        layouts = self.sites.layouts
        if self.layout not in (layouts or (None,)):
            instead = f"use {' or '.join(layouts)}" if layouts else "leave it out"
            raise RequestError("layout", f"{self.layout} is for whole units, not {self.pattern}; {instead}")
        if self.layout == "uniform" and self.allocation.uneven:
            raise RequestError(
                "layout",
                f"uniform was asked, and the allocation {name_of(self.allocation)} gives blocks different "
                f"sizes; use --allocation uniform, or --layout {' or '.join(layouts[1:])}",
            )

    @property
    def every_step(self) -> tuple[Recipe, ...]:
        """All steps in order, each without those before it."""
        return *self.before, self.model_copy(update={"before": ()})

    @property
    def sites(self) -> Sites:
        """The kind of site that is pruned."""
        return sites_of(self.pattern)

    @property
    def asked(self) -> SizeRequest:
        """What is asked of the sizes of the pruned model."""
        return SizeRequest(self.sparsity, self.layout, self.repair.gives_bias, self.repair.refits_seams)

    @property
    def needs(self) -> type[Statistic]:
        """What pruning must know of every site's inputs."""
        compared = CrossGram if self.target == "dense" else Nothing
        return joined(self.method.gathers, self.repair.gathers, compared)

    @property
    def needs_text(self) -> bool:
        """Whether anything is measured on a text."""
        return self.needs is not Nothing or self.allocation.needs_text or self.repair.refits_seams

    @property
    def keeps_statistics(self) -> bool:
        """Whether what the allocation measures of the dense model is all that pruning needs to know."""
        measures = self.sites.changes_sizes and self.allocation.hands_on
        return measures and self.needs.small and self.propagation == "dense"

    def demand(self, blocks: int, length: int) -> Demand:
        """What the run must hold, and how often it walks the model.

        Args:
            blocks: of the model.
            length: tokens of a calibration window.
        """
        samples = self.calibration.samples if self.needs_text else 0
        compares = self.allocation.compares_scores and self.method.needs is not Nothing
        measures = (self.allocation.needs_text or compares) and not self.keeps_statistics
        removed = round(self.sparsity * blocks)
        measuring = self.allocation.measuring(blocks, removed, samples * length)
        seams = removed * samples * length if self.repair.refits_seams else 0
        return Demand(
            needs=self.needs,
            propagation=self.propagation,
            samples=samples,
            training_passes=self.method.training_passes,
            drawing_passes=self.calibration.source.forward_passes,
            generates_text=self.calibration.source.needs_whole_model,
            measuring=measuring if measures else Measuring(0, 0),
            held_tokens=max(measuring.held, seams),
            follows_dense=self.target == "dense",
            refits_layers=self.repair.refits_seams,
            holds_all=self.keeps_statistics,
        )

    @classmethod
    def parse(cls, data: Options) -> Recipe:
        """The recipe that a mapping describes.

        Raises:
            RequestError: it names the first field that is wrong.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise plugins.sentence(error) from error

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data with every default filled in; `parse` gives the same recipe back."""
        steps = {"before": [step.resolved() for step in self.before]} if self.before else {}
        return (
            steps
            | {
                "version": self.version,
                "model": self.model,
                "method": plugins.plain(self.method),
                "pattern": self.pattern.resolved(),
                "sparsity": self.sparsity,
                "allocation": plugins.plain(self.allocation),
                "repair": plugins.plain(self.repair),
                "layout": self.layout,
                "recovery": plugins.plain(self.recovery) if self.recovery else None,
                "propagation": self.propagation,
                "calibration": self.calibration.model_dump(),
            }
            | ({"target": self.target} if self.target != "pruned" else {})
        )

    @property
    def hash(self) -> str:
        """Names the resolved recipe in a config."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()


def _propagation(method: PruningMethod, pattern: Pattern, target: Target) -> Propagation:
    """What calibrates later layers unless something else is asked."""
    if target == "dense":
        return "layer"
    return "dense" if sites_of(pattern).shares == "experts" else method.propagation
