"""How fast a checkpoint reads a prompt and writes tokens, and what it takes, beside the dense one.

The two models take turns, and take turns at being first, so that what else happens on the machine and what
drifts with time happens to both. Pairs are measured until the ratio of their speeds is known.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import numpy as np

from llmprune import measured
from llmprune.checkpoint import source
from llmprune.measured import Bench, Ratio
from llmprune_eval import ratios
from llmprune_eval.models import engine_file, require_device
from llmprune_eval.runner import Load, Worker

SURE = 0.03  # half of the interval of a ratio, as a share of it, from which on it is known well enough
DECIDING = ("prefill_tokens_per_s", "decode_tokens_per_s")
Seconds = dict[str, float]  # of one model in one turn: prefill, first_token, decode


def compare(names: list[str], load: Load, where: dict[str, Any]) -> dict[str, Any]:
    """Measure one model, or two in turns until the ratio of their speeds is known or the time is over.

    Args:
        names: folders, .gguf files or Hub ids; of two, the dense model is the first.
        load: what to measure.
        where: arguments of `llmprune.load`.

    Returns:
        The load, the protocol in words, and for each model its figures (`measured.FIGURES`: medians, with
        `quartiles`), its peak memory, and for the last one which kernels were chosen: the other runs without.
        Of two models also `ratios`, with 95 % intervals.

    Raises:
        RequestError: there is no such checkpoint, or it has no positions for so many tokens.
        JobError: a model's process died.
    """
    require_device(names, where)
    for name in names:
        if not engine_file(name):  # a wrong name is refused before any process is started
            source.find(name, trust_remote_code=bool(where.get("trust_remote_code")))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # the processes inherit it
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # the dense model is measured as transformers runs it
    workers = [Worker(name, load, where, kernels=n == len(names)) for n, name in enumerate(names, 1)]
    try:
        facts = [worker.ask("facts") for worker in workers]
        _turn(workers, 0)  # a warm-up
        turns, how = repeated(lambda number: _turn(workers, number), facts, load)
        memory = [worker.ask("memory") for worker in workers]
    finally:
        for worker in workers:
            worker.end()
    models = []
    for number, name in enumerate(names):
        figures = _figures([turn[number] for turn in turns], facts[number], load)
        models.append({"name": name, **facts[number], **_medians(figures), **memory[number]})
    found = {"load": asdict(load), "protocol": f"{_conditions(load, models[-1])}; {how}", "models": models}
    return found | ({"ratios": _ratios(turns, facts, load)} if len(names) > 1 else {})


def _turn(workers: list[Worker], number: int) -> list[Seconds]:
    """One measurement of every model; in every other turn the last one begins."""
    taken: list[Seconds] = [{} for _ in workers]
    order = list(enumerate(workers))[:: -1 if number % 2 else 1]
    for step in ("prefill", "decode"):
        for place, worker in order:
            taken[place] |= worker.ask(step)
    return taken


def repeated(
    turn: Callable[[int], list[Seconds]],
    facts: list[dict[str, Any]],
    load: Load,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[list[Seconds]], str]:
    """Measure in turns as often as needed.

    One model is measured as often as asked. Two are measured so often at least, then until the intervals of
    both ratios are within 3 %, or the time is over. To stop as soon as an interval is narrow makes it miss a
    little more often; in simulations 93 to 98 % hold the true ratio.

    Returns:
        The seconds of every turn, and in words how many there were and what ended them.
    """
    begin, turns = clock(), [turn(0)]
    while True:
        pair, enough = len(facts) > 1, len(turns) >= load.repeats
        if enough and not pair:
            return turns, f"medians and quartiles of {len(turns)} measurements, after a warm-up"
        if enough and all(ratios.within(one, SURE) for one in _ratios(turns, facts, load, DECIDING).values()):
            return turns, _ended(turns, f"both intervals were within {SURE:.0%}")
        if enough and clock() - begin >= load.seconds:
            return turns, _ended(turns, f"{load.seconds:g} s had passed")
        turns.append(turn(len(turns)))


def _ended(turns: list[list[Seconds]], why: str) -> str:
    few = f" (none of fewer than {ratios.FEWEST} pairs)" if len(turns) < ratios.FEWEST else ""
    return (
        f"medians of {len(turns)} pairs in alternating order, after a warm-up, until {why}; ratios: median "
        f"over the pairs, with its 95 % interval{few}"
    )


def _conditions(load: Load, model: dict[str, Any]) -> str:
    """What was measured, and where."""
    return (
        f"batch {load.batch}, prompt {load.prompt}, {load.new_tokens} new tokens, {model['dtype']}, "
        f"{model['device']}, eager"
    )


def _figures(turns: list[Seconds], facts: dict[str, Any], load: Load) -> dict[str, list[float]]:
    """The figures of one model in every turn; characters are those of its own tokens on the builtin text."""
    rates = {
        step: [load.batch * tokens / turn[step] for turn in turns]
        for step, tokens in (("prefill", load.prompt), ("decode", load.new_tokens))
    }
    found = {"first_token_s": [turn["first_token"] for turn in turns]}
    for step, each in rates.items():
        found[f"{step}_tokens_per_s"] = each
        found[f"{step}_characters_per_s"] = [rate * facts["characters_per_token"] for rate in each]
    return found


def _medians(figures: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: statistics.median(each) for name, each in figures.items()}
    quartiles = {name: np.quantile(each, [0.25, 0.75]).tolist() for name, each in figures.items()}
    return {**medians, "quartiles": quartiles}


def _ratios(
    turns: list[list[Seconds]], facts: list[dict[str, Any]], load: Load, names: tuple[str, ...] = ()
) -> dict[str, Ratio]:
    """The last model's figures over the first one's, all of them or those of these names."""
    dense, pruned = (_figures([turn[n] for turn in turns], facts[n], load) for n in (0, -1))
    return {
        name: ratios.of(list(zip(dense[name], pruned[name], strict=True))) for name in names or tuple(dense)
    }


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The measurements as a table; with two models, the second over the first."""
    models, speeds = found["models"], measured.speeds(cast(Bench, found))
    peaks = [f"{model['peak_device_bytes'] or model['peak_rss_bytes']:,}" for model in models]
    table = [
        ("model", [model["name"] for model in models], ""),
        *((row.what, [row.dense, row.pruned][-len(models) :], row.ratio) for row in speeds),
        ("peak memory, bytes", peaks, ""),
    ]
    width = max(len(cell) for _, cells, _ in table for cell in cells)
    shown = [
        (what, "   ".join([*(f"{cell:>{width}}" for cell in cells), ratio]).rstrip())
        for what, cells, ratio in table
    ]
    kernels = models[-1]["kernels"].removeprefix("kernels: ").splitlines()
    return [*shown, ("protocol", found["protocol"]), *(("kernels", line) for line in kernels)]
