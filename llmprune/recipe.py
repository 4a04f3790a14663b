"""A recipe: what to remove from which model, checked before anything is read or written."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, model_validator

from llmprune import plugins
from llmprune.allocation.base import Allocator
from llmprune.errors import RequestError
from llmprune.methods.base import Method, Propagation
from llmprune.model.shapes import Layout
from llmprune.model.sites.base import Asked, Sites, sites_of
from llmprune.patterns import base as patterns
from llmprune.patterns.base import Pattern
from llmprune.plugins import Options, name_of
from llmprune.recovery.base import Recovery
from llmprune.repair.base import Repair
from llmprune.tensors.statistics import Nothing, Statistic, joined
from llmprune.text.calibration import Calibration, with_defaults
from llmprune.walk.demand import Demand

METHODS, ALLOCATIONS = "llmprune.methods", "llmprune.allocation"


class Recipe(BaseModel):
    """What to remove, and from which model, in about ten lines of YAML.

    Every part is a name, or a mapping of its `name` and options: `method: {name: sparsegpt, damping: 0.02}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    version: int = Field(1, ge=1)
    """Bumped whenever the recipe's numbers change."""
    model: str | None = None
    """A folder, a .gguf file or a Hub id; the command line's wins."""
    method: InstanceOf[Method[Any]]
    """Which weights go, and whether the others change: a file of `llmprune/methods/`."""
    pattern: InstanceOf[Pattern]
    """A file of `llmprune/patterns/`: `unstructured`, N:M, `units`, `blocks` or `vocabulary`."""
    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the sites' parameters that go, 0 to 1; an N:M pattern fixes it."""
    allocation: InstanceOf[Allocator]
    """How much goes where: a file of `llmprune/allocation/`."""
    repair: InstanceOf[Repair[Any]]
    """How the remaining units compensate: a file of `llmprune/repair/`."""
    layout: Layout | None = None
    """How blocks of different sizes are written; None for single weights, which change no sizes."""
    recovery: InstanceOf[Recovery] | None = None
    """What improves the result afterwards: a file of `llmprune/recovery/`."""
    propagation: Propagation = "layer"
    """Outputs that calibrate later layers: of the dense model, or of pruned blocks or layers."""
    calibration: Calibration
    """Which text calibrates."""

    @model_validator(mode="before")
    @classmethod
    def _build(cls, data: object) -> object:
        """Replace every name by what it stands for, and fill in what depends on the method."""
        data = _with_method(data)
        text = data.get("calibration", {})
        seed = text.get("seed") if isinstance(text, dict) else None
        usual = {"seed": seed} if type(seed) is int else {}  # any other is the calibration's to refuse
        method = plugins.build("method", METHODS, data["method"], Method, usual)
        listed = _pattern(data.get("pattern"), method.pattern, method.compete).allocation
        budget = listed or method.allocation
        allocation = _with_default(data.get("allocation", budget), budget)
        repair = _with_default(data.get("repair", method.repair), method.repair)
        allocation = plugins.build("allocation", ALLOCATIONS, allocation, Allocator)
        repair = plugins.build("repair", "llmprune.repair", repair, Repair)
        competing = "matrix" if allocation.compares_scores else method.compete
        pattern = _pattern(data.get("pattern"), method.pattern, competing)
        data |= {"method": method, "allocation": allocation, "repair": repair, "pattern": pattern}
        if data.get("recovery") is not None:
            data["recovery"] = recovery_of(data["recovery"])
        if isinstance(text, dict):
            data["calibration"] = with_defaults(text, method.calibration)
        data.setdefault("propagation", method.propagation)
        if data.get("layout") is None:
            data["layout"] = _sites(pattern).default_layout(uneven=allocation.uneven)
        if listed is not None:
            data.setdefault("sparsity", 0.0)  # follows from the list, once the model is known
        if pattern.only_sparsity is not None:
            data["sparsity"] = _only(pattern, data.get("sparsity", pattern.only_sparsity))
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        self._agree_on_kind()
        name = name_of(self.allocation)
        if self.pattern.only_sparsity is not None and self.allocation.uneven:
            raise RequestError(
                "allocation",
                f"{name} gives sites different sparsities, which {self.pattern} cannot have; use uniform",
            )
        if self.allocation.compares_scores and not self.method.scores_alone():
            raise RequestError(
                "allocation",
                f"{name} compares scores before pruning, and {name_of(self.method)} decides while it "
                "prunes; use uniform, erk or owl",
            )
        return self

    def _agree_on_kind(self) -> None:
        """Refuse what does not go with the kind of site that the pattern prunes."""
        method, allocation, repair = map(name_of, (self.method, self.allocation, self.repair))
        shares = self.sites.shares
        whole = self.sites.whole and shares != "rows"
        if shares not in self.method.serves:
            kinds = " or ".join(self.method.serves)
            raise RequestError(
                "pattern",
                f"{method} prunes {kinds}, and {self.pattern} was asked; use {_fitting(self.method)}",
            )
        if shares not in self.allocation.serves:
            raise RequestError("allocation", f"{allocation} cannot share out {shares}; use {_share(shares)}")
        if shares == "rows" and self.recovery is not None:
            raise RequestError(
                "recovery",
                f"{name_of(self.recovery)} compares logits of one vocabulary, and {self.pattern} changes it; "
                "recover before the vocabulary is cut",
            )
        if not whole and repair != "none":
            raise RequestError(
                "repair", f"{repair} compensates for whole units, not {self.pattern}; use none"
            )
        if not whole and self.layout is not None:
            raise RequestError(
                "layout", f"{self.layout} is for whole units, not {self.pattern}; leave it out"
            )
        if self.layout == "uniform" and self.allocation.uneven:
            raise RequestError(
                "layout",
                f"uniform was asked, and the allocation {allocation} gives blocks different sizes; use "
                "--allocation uniform, or --layout per_layer or padded",
            )

    @property
    def sites(self) -> Sites:
        """The kind of site that is pruned."""
        return sites_of(self.pattern)

    @property
    def asked(self) -> Asked:
        """What is asked of the sizes of the pruned model."""
        return Asked(self.sparsity, self.layout, self.repair.gives_bias)

    @property
    def needs(self) -> type[Statistic]:
        """What pruning must know of every site's inputs."""
        return joined(self.method.needs, self.repair.needs)

    @property
    def needs_text(self) -> bool:
        """Whether anything is measured on a text."""
        return self.needs is not Nothing or self.allocation.needs_text

    @property
    def hands_on(self) -> bool:
        """Whether what the allocation measures of the dense model is all that pruning needs to know."""
        measures = self.sites.whole and self.allocation.uneven
        return measures and self.needs.small and self.propagation == "dense"

    @property
    def demand(self) -> Demand:
        """What the run must hold, and how often it walks the model."""
        compares = self.allocation.compares_scores and self.method.needs is not Nothing
        measures = self.allocation.needs_text or compares
        return Demand(
            needs=self.needs,
            propagation=self.propagation,
            samples=self.calibration.samples if self.needs_text else 0,
            training_passes=self.method.training_passes,
            drawing_passes=self.calibration.source.forwards,
            generates_text=self.calibration.source.needs_whole_model,
            allocation_pass=measures and not self.hands_on,
            holds_all=self.hands_on,
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
        return {
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

    @property
    def hash(self) -> str:
        """Names the resolved recipe in a config."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()


def _with_method(data: object) -> dict[str, Any]:
    """A recipe's data with its method: the pattern's own where none is asked for.

    Where whole blocks go, the criterion is an allocation, and can be asked for as the method.

    Raises:
        RequestError: there is no method.
    """
    data = dict(data) if isinstance(data, dict) else {}
    asked = data.get("method")
    name = asked.get("name") if isinstance(asked, dict) else asked
    if asked is None and "pattern" in data:
        data["method"] = patterns.build(data["pattern"], {}).method
    elif name in plugins.names(ALLOCATIONS) and name not in plugins.names(METHODS):
        if data.get("allocation") not in (None, asked):
            raise RequestError(
                "allocation", f"{data['allocation']} and the method {name} were asked; give one"
            )
        serves = plugins.find(ALLOCATIONS, str(name), Allocator).serves
        if "blocks" in serves:
            data |= {"method": "whole", "allocation": asked}
    if data.get("method") is None:
        raise RequestError("method", "none was given; `llmprune methods` lists them")
    return data


def _fitting(method: Method[Any]) -> str:
    """Patterns that a method can prune by, in words."""
    words = {"weights": "unstructured or N:M", "units": "units", "blocks": "blocks", "rows": "vocabulary"}
    return " or ".join(words[kind] for kind in method.serves)


def _share(kind: str) -> str:
    """An allocation for each kind of thing that is shared out, in words."""
    return "sleb" if kind == "blocks" else "uniform"


def recovery_of(value: object) -> Recovery:
    """The recovery that a name, or a mapping of its name and options, asks for.

    Raises:
        RequestError: there is none of that name, or it has no such option.
    """
    return plugins.build("recovery", "llmprune.recovery", value, Recovery)


def calibration_of(value: Options) -> Calibration:
    """The text that a mapping asks for.

    Raises:
        RequestError: it names the first field that is wrong.
    """
    try:
        return Calibration.model_validate(value)
    except ValidationError as error:
        raise plugins.sentence(error, "calibration") from error


def _with_default(value: object, name: str) -> object:
    """A mapping of options with this name, unless it has one."""
    return {"name": name, **value} if isinstance(value, dict) else value


def _pattern(value: object, usual: object, compete: str) -> Pattern:
    """The pattern that was asked for, with the method's options where it is the method's own."""
    if isinstance(value, Pattern):
        return value
    own, options = (dict(v) if isinstance(v, dict) else {"name": v} for v in (usual, value))
    if options.get("name") in (None, own["name"]):
        options = {**own, **{key: v for key, v in options.items() if v is not None}}
    return patterns.build(options, {"compete": compete})


def _sites(pattern: Pattern) -> Sites:
    try:
        return sites_of(pattern)
    except ValueError as error:
        raise RequestError("pattern", str(error)) from error


def _only(pattern: Pattern, asked: object) -> float:
    """The only sparsity that a pattern has."""
    fixed = pattern.only_sparsity
    assert fixed is not None
    if not abs(_number(asked) - fixed) <= 1e-9:
        raise RequestError(
            "sparsity",
            f"{asked} was asked, and the pattern {pattern} removes exactly "
            f"{fixed:g}; leave the sparsity out, or change the pattern",
        )
    return fixed


def _number(value: object) -> float:
    try:
        if isinstance(value, str | int | float):
            return float(value)
        why = None
    except (ValueError, OverflowError) as error:
        why = error
    raise RequestError("sparsity", f"{value!r} is not a number") from why
