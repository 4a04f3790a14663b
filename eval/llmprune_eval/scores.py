"""One task's figures, out of all that lm-eval tells."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmprune_eval import bootstrap

CHOICE = "multiple_choice"  # lm-eval's word
METRICS = (
    "acc_norm",
    "acc",
    "exact_match",
    "f1",
    "word_perplexity",
)  # the first that a task has is its score


def of(name: str, values: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """One task's figures, without the filters in lm-eval's names."""
    plain = {
        key.partition(",")[0]: value if isinstance(value, int) else float(value)  # some are numpy's
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    metric = next((m for m in METRICS if m in plain), None)
    higher = found.get("higher_is_better", {}).get(name, {}).get(metric or "", True)
    shown = {"metric": metric, "higher_is_better": higher, "num_fewshot": found.get("n-shot", {}).get(name)}
    asked = found.get("n-samples", {}).get(name)  # a group has none of its own
    of = {"questions": {"asked": asked["effective"], "of": asked["original"]}} if asked else {}
    samples = found.get("samples", {}).get(name, [])
    chance = _chance(samples) if found.get("configs", {}).get(name, {}).get("output_type") == CHOICE else None
    examples = _examples(samples, metric)
    interval = bootstrap.spread(list(examples.values()))
    return {**plain, **shown, **of, "chance": chance, "interval": interval, "examples": examples}


def _chance(samples: list[dict[str, Any]]) -> float | None:
    """The mean score of guessing, where every question has its number of answers."""
    return sum(1 / len(s["resps"]) for s in samples) / len(samples) if samples else None


def _examples(samples: list[dict[str, Any]], metric: str | None) -> dict[str, float]:
    """The score of every question, by its number; none where the task's score is not their mean."""
    scores: dict[str, Any] = {str(s["doc_id"]): s[metric] for s in samples if metric and metric in s}
    if not all(isinstance(score, int | float | np.generic) for score in scores.values()):
        return {}  # a perplexity's are pairs of a likelihood and a count
    return {question: float(score) for question, score in scores.items()}
