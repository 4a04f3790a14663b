"""Figures of an evaluation as names, and conditions on them that fail a pipeline."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llmprune.errors import RequestError
from llmprune_eval import talk, tasks

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
CONDITION = re.compile(r"\s*([\w.:-]+)\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Condition:
    """Such as `kl > 0.1`."""

    said: str
    name: str
    holds: Callable[[float], bool]


def parse(said: str) -> Condition:
    """Read a condition.

    Raises:
        RequestError: it is none.
    """
    found = CONDITION.fullmatch(said)
    try:
        bound = float(found[3]) if found else None
    except ValueError:
        bound = None
    if found is None or bound is None or not math.isfinite(bound):
        raise RequestError(
            "fail_if", f'{said!r} is no condition; write a figure and a bound, as in "kl > 0.1"'
        )
    compare = OPERATORS[found[2]]
    return Condition(said.strip(), found[1], lambda value: compare(value, bound))


def names(texts: list[str], asked: tasks.Ask | None, *, talks: bool, baseline: bool) -> list[str]:
    """The figures that an evaluation will have.

    Args:
        texts: whose perplexity is asked.
        asked: tasks.
        talks: whether suite `talk` is asked.
        baseline: whether the dense model is measured as well.
    """
    found = ["perplexity", "bits_per_byte"] if texts else []
    scored = list(asked.tasks) if asked else []
    found += scored
    found += [f"talk.{name}" for name in talk.FIGURES] if talks else []
    if baseline:
        found += ["talk.agreement", "talk.longer"] if talks else []
        found += ["kl", "top1", "bits_per_byte.ratio"] if texts else []
        found += [f"{task}.difference" for task in scored] + (["kept"] if scored else [])
        found += [f"{suite}.kept" for suite in tasks.suites() if _whole(suite, scored)]
    return found


def require_known(conditions: list[Condition], known: list[str]) -> None:
    """Refuse a condition on what is not measured.

    Raises:
        RequestError: it names the figures that are.
    """
    for condition in conditions:
        if condition.name not in known:
            raise RequestError(
                "fail_if",
                f"{condition.name} is not among the figures of this evaluation; there are {', '.join(known)}",
            )


def figures(model: dict[str, Any]) -> dict[str, float]:
    """The figures of one model's results, by name; of several texts those of the first."""
    found: dict[str, float] = {}
    for text in model.get("perplexity", [])[:1]:
        found |= {"perplexity": text["perplexity"], "bits_per_byte": text["bits_per_byte"]}
    for both in model.get("agreement", [])[:1]:
        if both.get("windows", 1.0) == 1:  # a cut vocabulary's are of the windows that hold nothing it lacks
            found |= {"kl": both["kl"], "top1": both["top1"]}
    for text in model.get("comparison", {}).get("perplexity", [])[:1]:
        found["bits_per_byte.ratio"] = text["bits_per_byte"]
    return found | _of_tasks(model) | _of_talk(model)


def _of_tasks(model: dict[str, Any]) -> dict[str, float]:
    compared = model.get("comparison", {})
    scored = {name: task for name, task in model.get("tasks", {}).items() if task["metric"]}
    found = {name: task[task["metric"]] for name, task in scored.items()}
    for name, row in compared.get("tasks", {}).items():
        if "difference" in row:
            found[f"{name}.difference"] = row["difference"]
    for name, kept in compared.get("kept", {}).items():
        if kept["value"] is not None:
            found["kept" if name == "all" else f"{name}.kept"] = kept["value"]
    return found


def _of_talk(model: dict[str, Any]) -> dict[str, float]:
    found = {f"talk.{name}": model["talk"][name] for name in talk.FIGURES if "talk" in model}
    if compared := model.get("comparison", {}).get("talk"):
        found |= {"talk.agreement": compared["agreement"]["value"], "talk.longer": compared["longer"]}
    return found


def failed(conditions: list[Condition], results: dict[str, Any]) -> list[str]:
    """The conditions that hold of any model but the baseline, with the figures; one without a value fails.

    Args:
        conditions: on figures of `names`.
        results: of `evaluation.evaluate`.
    """
    models = [model for role, model in results.items() if role != "baseline"]
    return [f"{model['name']}: {said}" for model in models for said in _failed(conditions, model)]


def _failed(conditions: list[Condition], model: dict[str, Any]) -> Iterator[str]:
    found = figures(model)
    for condition in conditions:
        value = found.get(condition.name)
        if value is None or condition.holds(value):
            shown = f"is {value:.4g}" if value is not None else "has no value for these models"
            yield f"{condition.said}: {condition.name} {shown}"


def _whole(suite: str, scored: list[str]) -> bool:
    """Whether all tasks of a suite are among those that are scored."""
    return {*tasks.tasks_of(suite)} <= {*scored}
