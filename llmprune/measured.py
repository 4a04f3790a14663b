"""What was measured of a model, typed: quality, speed and size, the dense model's beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # Python 3.11's own cannot be checked by pydantic

Positive = Annotated[float, Field(gt=0)]
# What decides which characters of a text are predicted, besides the tokenizer.
WINDOWS = ("dataset", "split", "length", "stride", "windows", "bos", "tokenizers")
# Of a bench: the figure, its name in tables, and how it is written.
FIGURES = (
    ("prefill_tokens_per_s", "prefill, tokens per second", ".1f"),
    ("prefill_characters_per_s", "prefill, characters per second", ".1f"),
    ("first_token_s", "time to first token, seconds", ".4f"),
    ("decode_tokens_per_s", "decode, tokens per second", ".1f"),
    ("decode_characters_per_s", "decode, characters per second", ".1f"),
    ("parameters", "parameters", ","),
    ("weight_bytes", "bytes of weights", ","),
    ("kv_bytes_per_token", "KV cache, bytes per token", ",.0f"),
)


class Text(TypedDict):
    """A perplexity; whatever else stands there says how it was measured."""

    perplexity: float
    bits_per_byte: NotRequired[float]
    dataset: NotRequired[str]
    protocol: NotRequired[str]


class Agreement(TypedDict):
    """How far predictions on a text are from the dense model's."""

    dataset: str
    kl: float
    """Mean KL(dense || pruned), in nats."""
    top1: float
    predictions: int
    interval: NotRequired[list[float] | None]
    """Of the divergence, as the others by drawing windows."""
    top1_interval: NotRequired[list[float] | None]
    by_quarter: NotRequired[list[float]]
    by_quarter_intervals: NotRequired[list[list[float] | None]]
    windows: NotRequired[float]


class Drift(TypedDict):
    """How alike hidden states behind each block are: its index in the dense model, and the mean cosine."""

    blocks: list[int]
    cosine: list[float]
    intervals: NotRequired[list[list[float] | None]]
    protocol: NotRequired[str]


class Compared(TypedDict):
    """A text on which both models were measured: bits per byte over the dense model's."""

    bits_per_byte: NotRequired[Positive]
    interval: NotRequired[list[float] | None]


class Comparison(TypedDict, total=False):
    """The pruned model beside the dense one, as `llmprune_eval.comparison` tells it."""

    perplexity: list[Compared]


class Judged(TypedDict, total=False):
    """What was measured of one model. A task holds its scores and errors as lm-eval names them."""

    name: str
    perplexity: list[Text]
    agreement: list[Agreement]
    drift: Drift
    tasks: dict[str, dict[str, Any]]
    talk: dict[str, Any]
    comparison: Comparison


class Speed(TypedDict):
    """What a bench measured of one model."""

    prefill_tokens_per_s: Positive
    decode_tokens_per_s: Positive
    prefill_characters_per_s: NotRequired[Positive]
    decode_characters_per_s: NotRequired[Positive]
    first_token_s: NotRequired[Positive]
    parameters: NotRequired[int]
    weight_bytes: NotRequired[int]
    kv_bytes_per_token: NotRequired[float]
    quartiles: NotRequired[dict[str, list[float]]]
    """Of a figure's repeated measurements, the first and the third."""


class Ratio(TypedDict):
    """The pruned model's figure over the dense one's, and its 95 % interval if there were enough pairs."""

    ratio: Positive
    interval: list[float] | None


class Bench(TypedDict, total=False):
    """Models that were measured in turns, the pruned one last."""

    protocol: str
    models: list[Speed]
    ratios: dict[str, Ratio]


class Evaluation(TypedDict, total=False):
    """What was measured of the pruned model, and of the dense one beside it."""

    baseline: Judged
    model: Judged
    bench: Bench
    asked: dict[str, Any] | None


class BudgetTrial(TypedDict):
    """A budget that was tried: by which allocation, and how far its pruned model is from the dense one."""

    allocation: dict[str, Any]
    """Its name and options."""
    kl: float | None
    """Mean KL(dense || pruned) over the predictions of the held-out windows, in nats; None if not finite."""


class Refit(TypedDict):
    """A refitted layer: its relative output errors, and the penalty on moving its weights."""

    name: str
    error_before: float
    error_after: float
    ridge: float


class Look(TypedDict):
    """What a training was worth after some steps: its loss on held-out windows."""

    step: int
    loss: float


class Learned(TypedDict, total=False):
    """How a policy was trained: one curve for each part of the blocks."""

    losses: dict[str, list[float]]


class Row(NamedTuple):
    """A figure in a table; what was not measured is empty."""

    what: str
    dense: str
    pruned: str
    ratio: str


class SearchStep(TypedDict):
    """What one generation of a search of budgets found."""

    round: int
    generation: int
    kl: float
    """Mean KL(dense || pruned) of its best on the calibration windows that it was judged by, in nats."""


class Tried(TypedDict):
    """A recipe that was to land on a target."""

    name: str
    recipe: dict[str, Any]
    expected: float
    """What its result was to take: bytes, or seconds for a token."""
    reached: NotRequired[float]
    refused: NotRequired[str]
    """Why its result cannot be measured, in a sentence."""
    bits_per_byte: NotRequired[float]
    """Of the held-out windows, whose text is the same for all."""
    kl: NotRequired[float | None]
    """Mean KL(dense || pruned) on these windows, in nats; None where the vocabulary was cut."""


class Planned(TypedDict):
    """How a target was reached."""

    target: str
    dense: float
    """What the dense model takes, in bytes, or seconds for a token."""
    goal: float
    """What was asked, in the same unit."""
    candidates: list[Tried]
    refused: list[str]
    """What this model cannot lose, in sentences."""
    chosen: str | None
    judged_by: str
    """`kl`, or `bits_per_byte` where a candidate has another vocabulary."""
    dense_bits_per_byte: NotRequired[float]
    landed: NotRequired[bool]
    """Whether the chosen one is as near as was allowed."""
    seconds: NotRequired[float]
    """That this process spent on all candidates."""
    held_out: NotRequired[str]


def divergence_in_words(both: Agreement) -> tuple[str, str]:
    """A divergence with its interval in nats, and how it was measured."""
    ends = both.get("interval")
    spread = f" [{ends[0]:.4f}, {ends[1]:.4f}]" if ends else ""
    ends = both.get("top1_interval")
    sure = f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else ""
    same = f"{100 * both['top1']:.1f} %{sure} with the same likeliest token"
    how = f"{both['predictions']:,} predictions, {same}"
    if (share := both.get("windows", 1.0)) < 1:
        how += f", over the tokens that stayed, on the {100 * share:.0f} % of windows without others"
    return f"{both['kl']:.4f}{spread}", how


def lowest(tried: Sequence[BudgetTrial]) -> int:
    """The number of the budget whose model is closest to the dense one; of equals, the first."""
    return min(range(len(tried)), key=lambda i: math.inf if (kl := tried[i]["kl"]) is None else kl)


def spelled(part: Mapping[str, Any]) -> str:
    """A part of a recipe with its options, lists left out."""
    options = {key: value for key, value in part.items() if key != "name" and not isinstance(value, list)}
    return ", ".join([part["name"], *(f"{key} {value}" for key, value in options.items())])


def trial_in_words(trial: BudgetTrial) -> str:
    """The allocation of a budget, and what was measured."""
    found = "no finite" if trial["kl"] is None else f"{trial['kl']:.4f} nats of"
    return f"{spelled(trial['allocation'])}: {found} KL divergence"


def same_characters(one: Text, other: Text) -> bool:
    """Whether two figures are of the same characters, so that their bits per byte can be compared."""
    alike = all(one.get(key) == other.get(key) for key in WINDOWS)
    return alike and (bool(one.get("tokenizers")) or one.get("tokenizer") == other.get("tokenizer"))


def same_tokens(one: Text, other: Text) -> bool:
    """Whether two figures are of the same tokens, so that their perplexities can be compared."""
    return same_characters(one, other) and one.get("tokenizer") == other.get("tokenizer")


def ratio(bench: Bench, figure: str) -> Ratio | None:
    """The pruned model's figure over the dense one's, where both were measured."""
    if found := bench.get("ratios", {}).get(figure):
        return found
    models: list[dict[str, Any]] = [dict(one) for one in bench.get("models", [])]
    if len(models) < 2 or not (models[0].get(figure) and models[-1].get(figure)):
        return None
    return {"ratio": models[-1][figure] / models[0][figure], "interval": None}


def said(found: Ratio | None) -> str:
    """A ratio with its interval."""
    if found is None:
        return ""
    if found["interval"] is None:
        return f"{found['ratio']:.3f}"
    low, high = found["interval"]
    return f"{found['ratio']:.3f} [{low:.3f}, {high:.3f}]"


def speeds(bench: Bench) -> list[Row]:
    """Speed and size of the pruned model, beside the dense one's where that was measured in turns with it.

    A model on its own has quartiles behind its medians.
    """
    models: list[dict[str, Any]] = [dict(one) for one in bench.get("models", [])]
    rows = []
    for figure, what, style in FIGURES if models else ():
        own = [_written(one.get(figure), style) for one in models]
        if len(models) > 1:
            rows.append(Row(what, own[0], own[-1], said(ratio(bench, figure))))
            continue
        ends = [_written(end, style) for end in models[0].get("quartiles", {}).get(figure, [])]
        rows.append(Row(what, "", f"{own[0]} [{', '.join(ends)}]" if ends else own[0], ""))
    return [row for row in rows if row.pruned]


def _written(value: float | None, style: str) -> str:
    return "" if value is None else f"{value:{style}}"
