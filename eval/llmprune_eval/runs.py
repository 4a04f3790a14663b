"""The reports of finished runs, as much of them as a page tells; read without torch, so that it is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmprune.errors import RequestError

SCHEMA = 1
REPORT = "llmprune_report.json"
PROTOCOL = ("dataset", "split", "length", "stride", "windows", "bos", "tokenizer")


class Part(BaseModel):
    """What is read of a part of a report; what a later llmprune adds to it is let through."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Site(Part):
    """One pruned layer."""

    name: str
    block: int
    kind: str
    asked: float
    reached: float
    dropped: int
    weights: int
    shape_before: list[int]
    shape_after: list[int]
    error: float | None = None


class Model(Part):
    """The model that was pruned."""

    source: str | None = None
    revision: str | None = None
    family: str = "unknown"


class Totals(Part):
    """Counts over the sites, and over the model."""

    sparsity: float
    model_sparsity: float
    zero_parameters: int
    parameters_before: int = Field(gt=0)
    parameters_after: int
    bytes_before: int = Field(gt=0)
    bytes_after: int = Field(gt=0)


class Recipe(Part):
    """What was asked; a part is a name, or a mapping of its name and options."""

    method: Any
    pattern: Any
    sparsity: float
    allocation: Any = None
    repair: Any = None
    layout: str | None = None
    propagation: str | None = None


class Calibration(Part):
    """The text that was calibrated on."""

    dataset: str
    samples: int
    length: int
    tokens: int | None = None
    seed: int | None = None
    sha256: str | None = None


class Reload(Part):
    """The check that the result loads."""

    line: str
    compared: str | None = None
    max_abs_logit_difference: float | None = None


class Refit(Part):
    """What a reconstruction did to one layer."""

    name: str
    error_before: float
    error_after: float


class Recovery(Part):
    """What brought quality back: a loss curve, or errors of layers."""

    name: str
    losses: list[float] = []
    sites: list[Refit] = []
    time: dict[str, float] = {}


class Learned(Part):
    """How a policy was trained: a curve for each part of the blocks."""

    losses: dict[str, list[float]] = {}


class Text(BaseModel):
    """A perplexity; whatever else stands there is its protocol."""

    model_config = ConfigDict(extra="allow")

    perplexity: float = Field(gt=0)
    dataset: str = "a text"
    protocol: str | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """Texts of the same key were measured alike."""
        return tuple(str(getattr(self, name, None)) for name in PROTOCOL)


class Judged(Part):
    """What was measured of one model."""

    name: str | None = None
    perplexity: list[Text] = []
    tasks: dict[str, dict[str, Any]] = {}


class Speed(Part):
    """What a bench measured of one model."""

    name: str | None = None
    prefill_tokens_per_s: float = Field(gt=0)
    decode_tokens_per_s: float = Field(gt=0)


class Bench(Part):
    """The models of a bench, the pruned one last."""

    protocol: str | None = None
    models: list[Speed] = []


class Evaluation(Part):
    """What was measured of the pruned model, and of the dense one beside it."""

    baseline: Judged = Judged()
    model: Judged = Judged()
    bench: Bench = Bench()


class Record(Part):
    """`llmprune_report.json`, as much of it as a page tells."""

    model: Model
    recipe: Recipe
    about: str = ""
    calibration: Calibration | None = None
    sites: list[Site] = Field(min_length=1)
    totals: Totals
    time: dict[str, float] = {}
    memory: dict[str, int] = {}
    reload: Reload | None = None
    evaluation: Evaluation | None = None
    recovery: Recovery | None = None
    learned: Learned | None = None
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Run:
    """A finished folder: its record, and the name and number that it goes by on the page."""

    folder: Path
    name: str
    number: int
    record: Record

    @property
    def error(self) -> float | None:
        """Mean output error over the sites, if any was measured."""
        errors = [site.error for site in self.record.sites if site.error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def judged(self) -> Evaluation:
        """What was measured, which may be nothing."""
        return self.record.evaluation or Evaluation()

    @property
    def size(self) -> float:
        """Bytes after over bytes before."""
        return self.record.totals.bytes_after / self.record.totals.bytes_before


def read_all(folders: list[Path]) -> list[Run]:
    """The runs of finished folders, each once, in the order given.

    Raises:
        RequestError: a folder holds no report that this version can read.
    """
    once = list({folder.resolve(): folder for folder in folders}.items())
    names = [place.name for place, _ in once]
    return [
        Run(folder, place.name if names.count(place.name) == 1 else str(folder), number, read(folder))
        for number, (place, folder) in enumerate(once, 1)
    ]


def read(folder: Path) -> Record:
    """The record of a finished folder.

    Raises:
        RequestError: there is none that this version can read.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise RequestError("model", f"{folder} is {what}; give a folder that llmprune prune has written")
    unfinished = (folder / ".unfinished").exists()
    if unfinished or not (folder / REPORT).is_file():
        found = "is unfinished" if unfinished else f"holds no {REPORT}"
        way = "finish or repeat its llmprune prune, or give another folder"
        raise RequestError("model", f"{folder} {found}; {way}")
    try:
        text = (folder / REPORT).read_text(encoding="utf-8")
        head = Schema.model_validate_json(text)
        if head.number == SCHEMA:
            return Record.model_validate_json(text)
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        raise RequestError(
            "model", f"{folder / REPORT} cannot be read ({_first(error)}); prune again, or restore the file"
        ) from error
    raise RequestError(
        "model", f"{folder / REPORT} has schema {head.number}, and {SCHEMA} can be read; update llmprune"
    )


class Schema(Part):
    """The version of a report's layout."""

    number: int = Field(alias="schema")


def _first(error: Exception) -> str:
    """The first thing that is wrong, in a few words."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])
