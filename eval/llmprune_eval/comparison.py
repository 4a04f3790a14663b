"""A pruned model beside the dense one: what it retains, and how sure that is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from llmprune.text.sources.typos import PREFIX
from llmprune_eval import bootstrap
from llmprune_eval import tasks as suites
from llmprune_eval.bootstrap import FEWEST, LEVEL, SEED


class Ratios(NamedTuple):
    """Bits per byte and perplexity over the dense model's, each with what drawing windows makes of it, if
    there are enough.
    """

    bits: float
    bits_drawn: np.ndarray | None
    perplexity: float
    perplexity_drawn: np.ndarray | None


class Scored(NamedTuple):
    """A task: the scores of both models by question, and that of guessing."""

    dense: dict[str, float]
    pruned: dict[str, float]
    chance: float


def paired(dense: dict[str, float], pruned: dict[str, float]) -> dict[str, Any]:
    """The difference of two models' scores on the same questions, with a paired bootstrap interval.

    Whole questions are drawn with replacement, both models' answers together, so that what is hard for both
    does not count as uncertainty (Koehn, 2004).

    Args:
        dense: the score of every question, by its number.
        pruned: the same.
    """
    return averaged([(dense, pruned)])


def averaged(tasks: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """The same for the mean score over several tasks, each with its own questions, all tasks alike.

    Args:
        tasks: for each of them what `paired` is given.
    """
    lost = [
        np.array([pruned[q] - dense[q] for q in sorted(dense.keys() & pruned.keys())])
        for dense, pruned in tasks
    ]
    generator = np.random.default_rng(SEED)
    means = np.mean([bootstrap.means(one, generator) for one in lost], axis=0)
    return {
        "questions": sum(map(len, lost)),
        "difference": float(np.mean([one.mean() for one in lost])),
        "interval": bootstrap.interval(means),
        "level": LEVEL,
    }


def kept(tasks: list[Scored]) -> dict[str, Any]:
    """The share of the dense model's points above chance that the pruned one has, with a paired interval.

    Points are the mean score over the tasks, all tasks alike, less what guessing scores. Whole questions are
    drawn, as in `paired`.

    Returns:
        `value` and `interval`; both None where the dense model is not above chance, or hardly.
    """
    generator = np.random.default_rng(SEED)
    pairs = []
    for one in tasks:
        shared = sorted(one.dense.keys() & one.pruned.keys())
        scores = np.array([[model[q] for q in shared] for model in (one.pruned, one.dense)])
        pairs.append((bootstrap.means(scores.T, generator) - one.chance, scores.mean(1) - one.chance))
    drawn, (pruned, dense) = np.mean([d for d, _ in pairs], axis=0), np.mean([m for _, m in pairs], axis=0)
    known = {"tasks": len(tasks), "level": LEVEL}
    if np.quantile(drawn[:, 1], (1 - LEVEL) / 2) <= 0:
        return {"value": None, "interval": None, **known}
    return {
        "value": float(pruned / dense),
        "interval": bootstrap.interval(drawn[:, 0] / drawn[:, 1]),
        **known,
    }


def _kept_by_suite(dense: dict[str, Any], pruned: dict[str, Any]) -> dict[str, Any]:
    """What is kept over all tasks with given answers, and over every suite of them that is whole."""
    scored = {
        name: Scored(before["examples"], pruned[name]["examples"], before["chance"])
        for name, before in dense.items()
        if before.get("chance") is not None and before["examples"]
    }
    groups = {"all": list(scored)} | {suite: suites.tasks_of(suite) for suite in suites.suites()}
    whole = {name: tasks for name, tasks in groups.items() if tasks and {*tasks} <= scored.keys()}
    return {name: kept([scored[task] for task in tasks]) for name, tasks in whole.items()}


def _ratios(dense: dict[str, Any], pruned: dict[str, Any]) -> Ratios:
    """The figures of one model over another's, of the same text."""
    bits, perplexity = (pruned[name] / dense[name] for name in ("bits_per_byte", "perplexity"))
    before, after = dense.get("losses", []), pruned.get("losses", [])
    apart = 2 * dense.get("stride", 0) > dense.get("length", 0)
    if len(before) != len(after) or len(before) < FEWEST or not apart:
        return Ratios(bits, None, perplexity, None)
    means = bootstrap.paired(before, after).T
    first, second = means / [[np.mean(before)], [np.mean(after)]]
    logs = [first * math.log(dense["perplexity"]), second * math.log(pruned["perplexity"])]
    return Ratios(bits, bits * second / first, perplexity, np.exp(logs[1] - logs[0]))


def _over(typed: Ratios, clean: Ratios) -> dict[str, Any]:
    """How many times as much a model loses on a text with typing errors as on the text itself."""
    drawn = None
    if typed.bits_drawn is not None and clean.bits_drawn is not None:
        drawn = typed.bits_drawn[::-1] / clean.bits_drawn  # backwards, so apart: their windows differ
    return {"value": typed.bits / clean.bits, "interval": _ends(drawn)}


def _ends(drawn: np.ndarray | None) -> list[float] | None:
    return None if drawn is None else bootstrap.interval(drawn)


def of(dense: dict[str, Any], pruned: dict[str, Any]) -> dict[str, Any]:
    """What became of every figure that both models have.

    Args:
        dense: one model's `perplexity` and `tasks`.
        pruned: the other's.
    """
    found: dict[str, Any] = {"tasks": {}, "perplexity": []}
    texts = list(zip(dense.get("perplexity", []), pruned.get("perplexity", []), strict=True))
    every = {before["dataset"]: _ratios(before, after) for before, after in texts}
    for before, after in texts:
        alike = all(before.get(key) == after.get(key) for key in ("tokenizer", "bos"))
        measure = "perplexity" if alike else "bits_per_byte"
        ratios = every[before["dataset"]]
        row = {
            "dataset": before["dataset"],
            "measure": measure,
            "ratio": ratios.perplexity if alike else ratios.bits,
            "ratio_interval": _ends(ratios.perplexity_drawn if alike else ratios.bits_drawn),
            "bits_per_byte": ratios.bits,
            "interval": _ends(ratios.bits_drawn),
            "comparable": alike,
        }
        clean = every.get(before["dataset"].removeprefix(PREFIX))
        if clean is not None and clean is not ratios:
            row["typos"] = _over(ratios, clean)
        found["perplexity"].append(row)
    for name, before in dense.get("tasks", {}).items():
        after, metric = pruned["tasks"][name], before["metric"]
        if not metric:
            continue
        row = {"metric": metric, "dense": before[metric], "pruned": after[metric]}
        rising = before.get("higher_is_better", True)  # of a perplexity more is lost, not retained
        row["retained"] = after[metric] / before[metric] if before[metric] and rising else None
        if before["examples"]:
            row |= paired(before["examples"], after["examples"])
        found["tasks"][name] = row
    found["kept"] = _kept_by_suite(dense.get("tasks", {}), pruned.get("tasks", {}))
    if len(scored := [name for name, row in found["tasks"].items() if "interval" in row]) > 1:
        found["mean"] = _mean(scored, dense["tasks"], pruned["tasks"])
    return found


def _mean(names: list[str], dense: dict[str, Any], pruned: dict[str, Any]) -> dict[str, Any]:
    """What became of the mean score over tasks."""
    before, after = (float(np.mean([t[name][t[name]["metric"]] for name in names])) for t in (dense, pruned))
    row = {"metric": f"mean of {len(names)} tasks", "dense": before, "pruned": after}
    row["retained"] = after / before if before else None
    return row | averaged([(dense[name]["examples"], pruned[name]["examples"]) for name in names])


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """A comparison as a table."""
    table = []
    for text in found["perplexity"]:
        note = "" if text["comparable"] else " (other tokenizer or BOS: perplexities cannot be compared)"
        bits = f"{text['bits_per_byte']:.3f}{_shown(text['interval'])} bits per byte"
        table.append(
            (
                text["dataset"],
                f"{text['measure']} times {text['ratio']:.3f}{_shown(text['ratio_interval'])}, {bits}{note}",
            )
        )
        if typos := text.get("typos"):
            said = f"{typos['value']:.3f}{_shown(typos['interval'])} times that ratio without typing errors"
            table.append((text["dataset"], said))
    means = {"mean": found["mean"]} if "mean" in found else {}
    for name, share in found["kept"].items():
        what = "all tasks" if name == "all" else name
        if share["value"] is None:
            table.append((what, "the dense model is not surely above chance on these questions"))
            continue
        low, high = share["interval"]
        said = f"{share['value']:.1%} of the points above chance kept [{low:.1%}, {high:.1%}]"
        table.append((what, f"{said} at {share['level']:.0%}"))
    for name, row in [*found["tasks"].items(), *means.items()]:
        line = f"{row['metric']} {row['dense']:.4f} -> {row['pruned']:.4f}"
        if row["retained"] is not None:
            line += f", {row['retained']:.1%} retained"
        if "interval" in row:
            low, high = row["interval"]
            line += f", difference {row['difference']:+.4f} [{low:+.4f}, {high:+.4f}] at {row['level']:.0%}"
        table.append((name, line))
    return table


def _shown(interval: list[float] | None) -> str:
    return "" if interval is None else " [{:.3f}, {:.3f}]".format(*interval)
