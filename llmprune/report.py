"""`llmprune_report.json`, typed: what a run writes into it, and what is read of it again.

A part is a plain mapping. What a later version adds to it is let through, and stays when it is written again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic import ValidatorFunctionWrapHandler as Handler
from typing_extensions import TypedDict  # Python 3.11's own cannot be checked by pydantic

from llmprune.errors import RequestError, one_line
from llmprune.measured import BudgetTrial, Evaluation, Learned, Look, Planned, Refit, SearchStep
from llmprune.vocabulary.choice import VocabularyRecord

FILE = "llmprune_report.json"
SCHEMA = 1  # raised when what was written before can no longer be read


class ModelFacts(TypedDict):
    """The model that was pruned."""

    source: str | None
    revision: str | None
    family: str
    parameters: int
    bytes: int


class Choice(TypedDict):
    """A part of a recipe; its options stand beside its name."""

    name: str


class RecipeRecord(TypedDict):
    """What was asked, every default filled in; `Recipe.parse` reads it."""

    version: int
    model: str | None
    method: Choice
    pattern: str | Choice
    sparsity: float
    allocation: Choice
    repair: Choice
    layout: str | None
    recovery: NotRequired[str | dict[str, Any] | None]
    propagation: str
    calibration: dict[str, Any]


class PartRecord(TypedDict):
    """One text of a mix; `sha256` is over its windows, without BOS."""

    dataset: str
    samples: int
    sha256: str


class CalibrationRecord(TypedDict):
    """The text that was calibrated on: windows of `length` tokens, `sha256` over all of them."""

    dataset: str
    samples: int
    length: int
    tokens: int
    seed: int | None
    sha256: str
    bos: NotRequired[bool]
    """Whether every window begins with BOS; absent for the caller's own tokens and in earlier reports."""
    parts: NotRequired[list[PartRecord]]
    """Of a mix."""


class SiteRecord(BaseModel):
    """One pruned layer. `error` is the relative error of its output on a sample of the calibration inputs."""

    model_config = ConfigDict(extra="allow")

    name: str
    block: int
    kind: str
    asked: float
    reached: float
    dropped: int
    zeros: int
    weights: int
    units: list[int] | None = None
    """How many there were and are, where whole units go; `weights` then counts all that goes with them."""
    shape_before: list[int]
    shape_after: list[int]
    error: float | None
    notes: dict[str, float] = {}
    """What the method has to say, such as SparseGPT's damping."""


class Totals(TypedDict):
    """Counts over all sites, and over the whole model; sparsities are shares from 0 to 1."""

    sparsity: float
    model_sparsity: float
    prunable_parameters: int
    removed_parameters: int
    zero_parameters: int
    parameters_before: Annotated[int, Field(gt=0)]
    parameters_after: int
    bytes_before: Annotated[int, Field(gt=0)]
    bytes_after: int


class Spent(TypedDict):
    """Seconds."""

    total_s: float


class Time(Spent):
    """Where a run spent them."""

    calibration_s: float
    solve_s: float
    write_s: float
    forward_floor_s: float


class Memory(TypedDict):
    """Peaks; the resident set counts file pages that the system can drop."""

    peak_rss_bytes: int
    peak_device_bytes: int


class Reload(TypedDict):
    """The check that the result loads, and the line that loads it."""

    line: str
    compared: str
    max_abs_logit_difference: float | None


class RecoveryRecord(TypedDict):
    """What brought quality back; its options stand beside its name."""

    name: str
    calibration: CalibrationRecord
    time: Spent
    ranks: NotRequired[list[int]]
    loss: NotRequired[str]
    losses: NotRequired[list[float]]
    held_out: NotRequired[list[Look]]
    trained_tokens: NotRequired[int]
    rate: NotRequired[float]
    computed_in: NotRequired[str]
    member_losses: NotRequired[list[float]]
    schedule: NotRequired[dict[str, float] | None]
    one_shot_loss: NotRequired[float]
    average_loss: NotRequired[float]
    swaps: NotRequired[list[int]]
    sites: NotRequired[list[Refit]]


class StepRecord(TypedDict):
    """A step of the recipe before the last one, whose sites the report holds."""

    recipe: RecipeRecord
    calibration: CalibrationRecord | None
    totals: Totals
    time: Time
    recovery: RecoveryRecord | None
    vocabulary: NotRequired[VocabularyRecord | None]


class Report(BaseModel):
    """What happened: what was asked, what became of every site, what it took, and how it was checked."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=(), populate_by_name=True)

    schema_: int = Field(SCHEMA, alias="schema")
    model: ModelFacts
    recipe: RecipeRecord
    about: str = ""
    """What the method says of itself."""
    calibration: CalibrationRecord | None
    sites: list[SiteRecord] = Field(min_length=1)
    mtp_heads: list[SiteRecord] | None = None
    """Those of heads for multi-token prediction that lost experts; empty where heads were left out."""
    totals: Totals
    time: Time
    memory: Memory
    reload: Reload | None = None
    evaluation: Evaluation | None = None
    recovery: RecoveryRecord | None = None
    vocabulary: VocabularyRecord | None = None
    """What became of the vocabulary, where it was cut."""
    blocks: list[int] | None = None
    """The dense model's index of every block that is left, where whole blocks went."""
    learned: Learned | None = None
    """How the policy was trained, or which one was used."""
    budgets: list[BudgetTrial] | None = None
    """The budgets that were tried, where one of several was chosen."""
    searched: list[SearchStep] | None = None
    """What every generation found, where budgets were searched."""
    planned: Planned | None = None
    """How a target was reached."""
    warnings: list[str] = []
    """What the user should know before the result is used, in sentences."""
    steps: list[StepRecord] | None = None
    versions: dict[str, str]
    fingerprint: dict[str, Any] | None = None

    @field_validator("*", mode="wrap")
    @classmethod
    def _as_given(cls, value: object, check: Handler) -> object:
        """Check a part, and keep the order of its keys."""
        checked = check(value)
        return value if isinstance(value, dict) else checked

    def to_json(self) -> str:
        """The report as it is written."""
        return json.dumps(self.model_dump(by_alias=True, warnings=False), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read a report back."""
        return cls.model_validate_json(text)


class _Head(BaseModel):
    """What is read first of a report, whatever its layout."""

    schema_: int = Field(alias="schema")


def read(folder: Path) -> Report | None:
    """The report of a finished folder, or None.

    Raises:
        RequestError: there is one that cannot be read, or of another schema.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8")
        found = _Head.model_validate_json(text).schema_
        if found == SCHEMA:
            return Report.from_json(text)
    except (OSError, ValueError) as error:
        raise RequestError(
            "model",
            f"{file} cannot be read as a report of llmprune ({_first(error)}); restore it, or prune anew",
        ) from error
    raise RequestError("model", f"{file} has schema {found}, and {SCHEMA} can be read; update llmprune")


def _first(error: Exception) -> str:
    """The first thing that is wrong, in a few words."""
    if not isinstance(error, ValidationError):
        return one_line(error)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def totals(
    sites: list[SiteRecord],
    model: ModelFacts,
    parameters_after: int,
    bytes_after: int,
    zeros: int | None = None,
) -> Totals:
    """Counts over all sites, and over the whole model: parameters that are gone, zeros that are stored.

    Args:
        sites: of the last pruning.
        model: the dense one.
        parameters_after: of the result.
        bytes_after: of its weight files.
        zeros: those of earlier prunings included; None to count the sites' own.
    """
    weights = sum(site.weights for site in sites)
    zeros = sum(site.zeros for site in sites) if zeros is None else zeros
    return {
        "sparsity": sum(site.dropped for site in sites) / weights,
        "model_sparsity": (zeros + model["parameters"] - parameters_after) / model["parameters"],
        "prunable_parameters": weights,
        "removed_parameters": model["parameters"] - parameters_after,
        "zero_parameters": zeros,
        "parameters_before": model["parameters"],
        "parameters_after": parameters_after,
        "bytes_before": model["bytes"],
        "bytes_after": bytes_after,
    }
