"""`llmprune_report.json`: what a run writes into it, and what is read of it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from llmprune.errors import RequestError, one_line
from llmprune.records import (
    CalibrationRecord,
    Evaluation,
    Learned,
    Memory,
    ModelFacts,
    RecipeRecord,
    RecoveryRecord,
    Reload,
    SiteRecord,
    StepRecord,
    Time,
    Totals,
)

FILE = "llmprune_report.json"
SCHEMA = 1  # raised when what was written before can no longer be read


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
    totals: Totals
    time: Time
    memory: Memory
    reload: Reload | None = None
    evaluation: Evaluation | None = None
    recovery: RecoveryRecord | None = None
    learned: Learned | None = None
    """How the policy was trained, or which one was used."""
    steps: list[StepRecord] | None = None
    """The steps before the last one."""
    versions: dict[str, str]
    fingerprint: dict[str, Any] | None = None

    @field_validator("*", mode="wrap")
    @classmethod
    def _as_given(cls, value: object, check: ValidatorFunctionWrapHandler) -> object:
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


def totals(sites: list[SiteRecord], model: ModelFacts, parameters_after: int, bytes_after: int) -> Totals:
    """Counts over all sites, and over the whole model: parameters that are gone, zeros that are stored."""
    weights = sum(site.weights for site in sites)
    zeros = sum(site.zeros for site in sites)
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
