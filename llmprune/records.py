"""The parts of a report, typed: what is recorded of the model, its sites, the time, and what was measured.

A part is a plain mapping. What a later version adds to it is let through, and stays when it is written again.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # Python 3.11's own cannot be checked by pydantic

Positive = Annotated[float, Field(gt=0)]


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


class CalibrationRecord(TypedDict):
    """The text that was calibrated on: windows of `length` tokens, `sha256` over all of them."""

    dataset: str
    samples: int
    length: int
    tokens: int
    seed: int | None
    sha256: str


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
    """Where a run spent its seconds."""

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


class Refit(TypedDict):
    """A layer that was solved anew, its relative output errors, and the penalty on moving its weights."""

    name: str
    error_before: float
    error_after: float
    ridge: float


class RecoveryRecord(TypedDict):
    """What brought quality back; its options stand beside its name."""

    name: str
    calibration: CalibrationRecord
    time: Spent
    ranks: NotRequired[list[int]]
    losses: NotRequired[list[float]]
    sites: NotRequired[list[Refit]]


class Learned(TypedDict, total=False):
    """How a policy was trained: one curve for each part of the blocks."""

    losses: dict[str, list[float]]


class Text(TypedDict):
    """A perplexity; whatever else stands there says how it was measured."""

    perplexity: float
    dataset: NotRequired[str]
    protocol: NotRequired[str]


class Judged(TypedDict, total=False):
    """What was measured of one model. A task holds its scores and errors as lm-eval names them."""

    name: str
    perplexity: list[Text]
    tasks: dict[str, dict[str, Any]]


class Speed(TypedDict):
    """What a bench measured of one model."""

    prefill_tokens_per_s: Positive
    decode_tokens_per_s: Positive


class Bench(TypedDict, total=False):
    """Models that were measured in turns, the pruned one last."""

    protocol: str
    models: list[Speed]


class Evaluation(TypedDict, total=False):
    """What was measured of the pruned model, and of the dense one beside it."""

    baseline: Judged
    model: Judged
    bench: Bench
    asked: dict[str, Any] | None


class StepRecord(TypedDict):
    """A step of the recipe before the last one, whose sites the report holds."""

    recipe: RecipeRecord
    calibration: CalibrationRecord | None
    totals: Totals
    time: Time
    recovery: RecoveryRecord | None
