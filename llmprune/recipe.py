"""What the user asked for: one YAML of about ten lines, checked before anything is read or written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from llmprune import plugins
from llmprune.allocation.base import Allocator
from llmprune.errors import RequestError, sentence
from llmprune.methods.base import Method, Propagation
from llmprune.model.layout import Layout
from llmprune.repair.base import Repair
from llmprune.tensors import patterns
from llmprune.tensors.patterns import NofM, Pattern, Units, Unstructured
from llmprune.tensors.statistics import Statistic, joined
from llmprune.text.calibration import Calibration, with_defaults


class Recipe(BaseModel):
    """What to remove, and from which model.

    Every part is a name, or a mapping of its `name` and options: `method: {name: sparsegpt, damping: 0.02}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    version: int = Field(1, ge=1)
    """Bumped whenever the recipe's numbers change."""
    model: str | None = None
    """A folder, a .gguf file or a Hub id; the command line's wins."""
    method: Any
    """Which weights go, and how the rest make up for it: a file of `llmprune/methods/`."""
    pattern: Any = "unstructured"
    """`unstructured`, N:M (N of every M are kept), or `units` (whole channels and groups of heads)."""
    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the sites' parameters that go, 0 to 1; an N:M pattern fixes it."""
    allocation: Any = "uniform"
    """How much goes where: a file of `llmprune/allocation/`."""
    repair: Any = "none"
    """How the units that stay make up for the others: a file of `llmprune/repair/`."""
    layout: Layout | None = None
    """How blocks of different sizes are written; None for loose weights, which change no sizes."""
    recovery: str | dict[str, Any] | None = None
    """What brings quality back afterwards: a file of `llmprune/recovery/`, checked when it is looked up."""
    propagation: Propagation = "layer"
    """What later layers are calibrated on: `dense` outputs, those of pruned blocks, or of pruned layers."""
    calibration: Calibration
    """Which text calibrates."""

    @model_validator(mode="before")
    @classmethod
    def _build(cls, data: Any) -> Any:
        """Replace every name by what it stands for, and fill in what depends on the method."""
        if not isinstance(data, dict) or "method" not in data:
            raise RequestError("method", "none was given; `llmprune methods` lists them")
        data = dict(data)
        text = data.get("calibration", {})
        seed = text.get("seed") if isinstance(text, dict) else None
        defaults = {"seed": seed} if type(seed) is int else {}  # any other is the calibration's to refuse
        method: Method[Any] = _part("method", "llmprune.methods", data["method"], Method, defaults)
        data["method"] = method
        if isinstance(text, dict):
            data["calibration"] = with_defaults(text, method.calibration)
        for field, package, base in (
            ("allocation", "llmprune.allocation", Allocator),
            ("repair", "llmprune.repair", Repair),
        ):
            usual = getattr(method, field)
            asked = data.get(field, usual)
            asked = {"name": usual, **asked} if isinstance(asked, dict) else asked
            data[field] = _part(field, package, asked, base, {})
        everywhere = data["allocation"].compares_scores
        competing = "matrix" if everywhere else method.compete
        data["pattern"] = _pattern(data.get("pattern"), method.pattern, competing)
        data.setdefault("propagation", method.propagation)
        if isinstance(data["pattern"], Units) and data.get("layout") is None:
            data["layout"] = "per_layer" if data["allocation"].uneven else "uniform"
        if isinstance(data["pattern"], NofM):
            fixed = data["pattern"].sparsity
            if not abs(_number(data.get("sparsity", fixed)) - fixed) <= 1e-9:
                raise RequestError(
                    "sparsity",
                    f"{data['sparsity']} was asked, and the pattern {data['pattern']} removes exactly "
                    f"{fixed:g}; leave the sparsity out, or change the pattern",
                )
            data["sparsity"] = fixed
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        self._agree_on_units()
        name = part_name(self.allocation)
        if isinstance(self.pattern, NofM) and self.allocation.uneven:
            raise RequestError(
                "allocation",
                f"{name} gives sites different sparsities, which {self.pattern} cannot have; use uniform",
            )
        if self.allocation.compares_scores and not self.method.scores_alone():
            raise RequestError(
                "allocation",
                f"{name} compares scores before pruning, and {part_name(self.method)} decides while it "
                "prunes; use uniform, erk or owl",
            )
        return self

    def _agree_on_units(self) -> None:
        """Refuse what goes with loose weights only, or with whole units only."""
        method, allocation, repair = map(part_name, (self.method, self.allocation, self.repair))
        units = isinstance(self.pattern, Units)
        if units and not self.method.scores_alone():
            raise RequestError("pattern", f"{method} prunes loose weights; use unstructured or N:M")
        if not units and self.method.only_units:
            raise RequestError(
                "pattern", f"{method} removes whole units, and {self.pattern} was asked; use units"
            )
        kind = "units" if units else "weights"
        if kind not in self.allocation.serves:
            raise RequestError("allocation", f"{allocation} cannot share out {kind}; use uniform")
        if not units and repair != "none":
            raise RequestError("repair", f"{repair} makes up for whole units, not {self.pattern}; use none")
        if not units and self.layout is not None:
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
    def needs(self) -> type[Statistic]:
        """What pruning must know of every site's inputs."""
        return joined(self.method.needs, self.repair.needs)

    @property
    def one_survey(self) -> bool:
        """Whether what the allocation measures of the dense model is all that pruning needs to know."""
        surveys = self.parts is not None and bool(self.allocation.uneven)
        return surveys and self.needs.small and self.propagation == "dense"

    @property
    def parts(self) -> Any:
        """Which units are pruned; None where loose weights are."""
        return self.pattern.parts if isinstance(self.pattern, Units) else None

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Recipe:
        """The recipe that a mapping describes.

        Raises:
            RequestError: it names the first field that is wrong.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise sentence(error) from error

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data with every default filled in; `parse` gives the same recipe back."""
        pattern: Any = str(self.pattern)
        if isinstance(self.pattern, Unstructured | Units):
            pattern = {"name": pattern, **dataclasses.asdict(self.pattern)}
        return {
            "version": self.version,
            "model": self.model,
            "method": {"name": part_name(self.method), **dataclasses.asdict(self.method)},
            "pattern": pattern,
            "sparsity": self.sparsity,
            "allocation": {"name": part_name(self.allocation), **dataclasses.asdict(self.allocation)},
            "repair": {"name": part_name(self.repair), **dataclasses.asdict(self.repair)},
            "layout": self.layout,
            "recovery": self.recovery,
            "propagation": self.propagation,
            "calibration": self.calibration.model_dump(),
        }

    @property
    def hash(self) -> str:
        """Names the resolved recipe in a config."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()


def part_name(part: object) -> str:
    """The name under which a recipe asks for a method, an allocator, a repair or a recovery."""
    module = type(part).__module__
    ours = module.startswith(
        ("llmprune.methods.", "llmprune.allocation.", "llmprune.repair.", "llmprune.recovery.")
    )
    return module.rsplit(".", 1)[-1] if ours else module


def _part(field: str, package: str, value: Any, base: type[Any], defaults: dict[str, Any]) -> Any:
    """The method, allocator or repair that a name, or a mapping of name and options, asks for."""
    if isinstance(value, base):
        return value
    options = dict(value) if isinstance(value, dict) else {"name": value}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RequestError(field, f"{value!r} is neither a name nor a mapping with a `name`")
    try:
        cls = plugins.find(package, name, base)
    except ValueError as error:
        raise RequestError(field, str(error)) from error
    known = {f.name for f in dataclasses.fields(cls)}
    options = {**{k: v for k, v in defaults.items() if k in known}, **options}
    try:
        return TypeAdapter(cls).validate_python(options)
    except ValidationError as error:
        raise sentence(error, field) from error


def _pattern(value: Any, usual: Any, compete: str) -> Pattern:
    """The pattern that was asked for, with the method's options where it is the method's own."""
    if isinstance(value, Unstructured | NofM | Units):
        return value
    usual, options = (dict(v) if isinstance(v, dict) else {"name": v} for v in (usual, value))
    if options.get("name") in (None, usual["name"]):
        options = {**usual, **{key: v for key, v in options.items() if v is not None}}
    name = options.pop("name", None)
    try:
        pattern = patterns.parse(name if isinstance(name, str) else repr(name))
        if isinstance(pattern, Unstructured):
            options = {"compete": compete, **options}
        if isinstance(pattern, Unstructured | Units):
            return TypeAdapter(type(pattern)).validate_python(options)
    except ValidationError as error:
        raise sentence(error, "pattern") from error
    except ValueError as error:
        raise RequestError("pattern", str(error)) from error
    if options:
        raise RequestError("pattern", f"{pattern} has no option {sorted(map(str, options))[0]!r}")
    return pattern


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError("sparsity", f"{value!r} is not a number") from error
