"""Which plots tell of a run, and which of several beside each other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llmprune import measured
from llmprune.report import SiteRecord
from llmprune_eval.candidates import over_dense
from llmprune_eval.plots import Axis, Chart, Grid, Plot, Series, curve, front
from llmprune_eval.runs import Measured, Run, key_of

MOST_KINDS = 8  # that are told apart; more, such as a mixture's experts, are put together
BLOCK = Axis("block", whole=True)
UNNAMED = "a text"
BARS = " (bars: 95 % by drawing windows)"
LOG = 8.0  # ratio from which perplexities are drawn on a logarithmic axis


@dataclass(frozen=True)
class Quality:
    """What the runs are compared by; smaller is better."""

    label: str
    values: dict[int, float]
    """By the number of the run."""

    dense: float | None
    note: str


def of(run: Run) -> list[Plot]:
    """The plots of one run."""
    kinds = kinds_of(run.record.sites)
    curves = (run.record.learned or {}).get("losses", {})
    found = [_target(run), _sparsity(kinds), _search(run), _errors(run, kinds), *_recovery(run, kinds)]
    found += [_drift(run), _quarters(run)]
    if any(curves.values()):
        series = tuple(curve(part, losses, 0) for part, losses in curves.items() if losses)
        passes, loss = Axis("passes made", whole=True), Axis("share of the spectrum lost")
        found.append(Chart("learning", "What the policy lost while it was trained", passes, loss, series))
    return [plot for plot in found if plot is not None]


def before_recovery(run: Run) -> str:
    """What has to be said of output errors where weights were moved after they were measured."""
    return ", before the recovery" if run.record.recovery else ""


def kinds_of(sites: list[SiteRecord]) -> dict[str, list[SiteRecord]]:
    """The sites by what they do in their block; where those are many, numbers in them are not told apart."""

    def grouped(name: Callable[[SiteRecord], str]) -> dict[str, list[SiteRecord]]:
        groups: dict[str, list[SiteRecord]] = {}
        for site in sites:
            groups.setdefault(name(site), []).append(site)
        return groups

    exact = grouped(lambda site: site.kind)
    if len(exact) <= MOST_KINDS:
        return exact
    merged = grouped(lambda site: re.sub(r"\d+", "*", site.kind))
    return merged if len(merged) <= MOST_KINDS else grouped(lambda site: site.kind.partition(".")[0])


def _by_block(
    sites: Iterable[SiteRecord], value: Callable[[list[SiteRecord]], float | None]
) -> dict[int, float]:
    blocks: dict[int, list[SiteRecord]] = {}
    for site in sites:
        blocks.setdefault(site.block, []).append(site)
    found = {block: value(there) for block, there in sorted(blocks.items())}
    return {block: v for block, v in found.items() if v is not None and math.isfinite(v)}


def _share(sites: list[SiteRecord]) -> float:
    return sum(site.dropped for site in sites) / (sum(site.weights for site in sites) or 1)


def _error(sites: list[SiteRecord]) -> float | None:
    errors = [site.error for site in sites if site.error is not None]
    return _mean(errors) if errors else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _sparsity(kinds: dict[str, list[SiteRecord]]) -> Grid:
    columns = tuple(sorted({site.block for sites in kinds.values() for site in sites}))
    shares = {kind: _by_block(sites, _share) for kind, sites in kinds.items()}
    rows = tuple((kind, tuple(values.get(block) for block in columns)) for kind, values in shares.items())
    value = Axis("share removed", percent=True)
    return Grid(
        "sparsity", "Share of the weights removed from each layer, in percent", BLOCK, value, columns, rows
    )


def _target(run: Run) -> Chart | None:
    planned = run.record.planned
    if planned is None:
        return None
    tried = [one for one in planned["candidates"] if "reached" in one]
    points = tuple((over_dense(planned, one["reached"]), one["bits_per_byte"]) for one in tried)
    series = Series("candidates", points, line=False, marks=tuple(one["name"] for one in tried))
    of = "speed" if planned["target"].endswith("decode") else "bytes"
    axes = Axis(f"{of} over the dense model's"), Axis("bits per byte")
    return Chart("target", f"What reaches {planned['target']}, on held-out windows", *axes, (series,))


def _search(run: Run) -> Chart | None:
    steps = run.record.searched
    if not steps:
        return None
    rounds: dict[int, list[tuple[float, float]]] = {}
    for number, step in enumerate(steps):
        rounds.setdefault(step["round"], []).append((number, step["kl"]))
    series = tuple(Series(f"round {number}", tuple(points)) for number, points in rounds.items())
    axes = Axis("generation", whole=True), Axis("KL to the dense model, nats")
    return Chart("search", "The best budgets of every generation, on calibration windows", *axes, series)


def _drift(run: Run) -> Chart | None:
    drift = run.judged().get("drift")
    if not drift:
        return None
    points = tuple(zip(map(float, drift["blocks"]), drift["cosine"], strict=True))
    text = drift.get("protocol", "the text that was measured")
    title = f"Hidden states behind each block beside the dense model's, on {text}"
    series = Series("cosine", points, ends=_known(drift.get("intervals", [])))
    return Chart("drift", title + BARS * bool(series.ends), BLOCK, Axis("mean cosine"), (series,))


def _quarters(run: Run) -> Chart | None:
    both = next((both for both in run.judged().get("agreement", []) if both.get("by_quarter")), None)
    if both is None:
        return None
    points = tuple((float(number), kl) for number, kl in enumerate(both["by_quarter"], 1))
    series = Series("KL", points, ends=_known(both.get("by_quarter_intervals", [])))
    title = f"Divergence from the dense model along the windows of {both['dataset']}"
    axes = Axis("quarter of the window", whole=True), Axis("KL to the dense model, nats")
    return Chart("quarters", title + BARS * bool(series.ends), *axes, (series,))


def _known(intervals: Sequence[Sequence[float] | None]) -> tuple[tuple[float, float], ...]:
    """Intervals as a series takes them; none where one is not known."""
    found = [(one[0], one[1]) for one in intervals if one]
    return tuple(found) if len(found) == len(intervals) else ()


def _errors(run: Run, kinds: dict[str, list[SiteRecord]]) -> Chart | None:
    values = {kind: _by_block(sites, _error) for kind, sites in kinds.items()}
    series = tuple(Series(kind, tuple(found.items())) for kind, found in values.items() if found)
    if not series:
        return None
    title = f"How far each layer's output moved on the calibration text{before_recovery(run)}"
    return Chart("error", title, BLOCK, Axis("relative output error"), series)


def _recovery(run: Run, kinds: dict[str, list[SiteRecord]]) -> list[Plot]:
    done = run.record.recovery
    if done is None:
        return []
    plots: list[Plot] = []
    name, losses, refitted = done["name"], done.get("losses", []), done.get("sites", [])
    if any(map(math.isfinite, losses)):
        title = f"Loss on the calibration text while {name} recovered the model"
        axes = Axis("step", whole=True), Axis("loss, nats per token")
        looks = tuple((look["step"], look["loss"]) for look in done.get("held_out", []))
        held_out = (Series("held-out windows", looks),) if looks else ()
        plots.append(Chart("recovery", title, *axes, (curve("loss", losses), *held_out)))
    sides = {
        "before": {site["name"]: site["error_before"] for site in refitted},
        "after": {site["name"]: site["error_after"] for site in refitted},
    }
    series = []
    for kind, sites in kinds.items():
        for label, errors in sides.items():
            known = [site.model_copy(update={"error": errors.get(site.name)}) for site in sites]
            found = _by_block(known, _error)
            if found:
                series.append(Series(f"{kind}, {label}", tuple(found.items()), hollow=label == "before"))
    if series:
        title = f"Output error of the layers that {name} refitted, before and after"
        plots.append(Chart("recovery_errors", title, BLOCK, Axis("relative output error"), tuple(series)))
    return plots


def quality(runs: list[Run]) -> Quality:
    """Perplexity on the first text that a run was measured on, or else the mean output error."""
    first = next((text for run in runs for text in run.texts()), None)
    if first is None:
        errors = {run.number: run.error for run in runs if run.error is not None}
        note = (
            "No perplexity is in these reports (llmprune eval --save puts it there), so the mean output "
            "error of the pruned layers stands for quality: each run's on its own calibration text, and "
            "before any recovery."
        )
        return Quality("mean output error", errors, None, note)
    measured = {
        run.number: text["perplexity"]
        for run in runs
        for text in run.texts()
        if key_of(text) == key_of(first) and math.isfinite(text["perplexity"])
    }
    sources = {run.record.model["source"] for run in runs if run.number in measured}
    dense = [t["perplexity"] for r in runs for t in r.texts("baseline") if key_of(t) == key_of(first)]
    left_out = [run.name for run in runs if run.number not in measured]
    how = first.get("protocol") or first.get("dataset", UNNAMED)
    note = f"Perplexity on {how}; lower is better."
    if left_out:
        note += f" Not measured so, and left out: {', '.join(left_out)}."
    if len(sources) > 1:
        note += " The runs start from different models."
    return Quality("perplexity", measured, dense[0] if dense and len(sources) == 1 else None, note)


def costs(runs: list[Run], found: Quality) -> dict[str, tuple[Axis, dict[int, float], bool]]:
    """What quality is weighed against, by name: the axis, the runs' values, and whether less is better."""
    size = Axis("bytes after, share of bytes before", percent=True)
    weighed = {"size": (size, {run.number: run.size for run in runs if run.number in found.values}, True)}
    for part in ("decode", "prefill"):
        speeds = {run.number: ratio for run in runs if (ratio := speed(run, part)) is not None}
        if speeds.keys() & found.values.keys():
            axis = Axis(f"{part} speed, times the dense model's")
            weighed[part] = (axis, {n: v for n, v in speeds.items() if n in found.values}, False)
    return weighed


def speed(run: Run, part: str) -> float | None:
    """How many times as fast as the dense model the pruned one is, where both were measured in turns."""
    found = measured.ratio(run.bench, f"{part}_tokens_per_s")
    return None if found is None else found["ratio"]


def best(runs: list[Run], found: Quality, against: str = "size") -> set[int]:
    """The numbers of the runs that no other beats in both quality and cost."""
    _, values, less = costs(runs, found)[against]
    pairs = [(value if less else -value, found.values[number]) for number, value in values.items()]
    return {number for number, on in zip(values, front(pairs), strict=True) if on}


def beside(runs: list[Run]) -> list[Plot]:
    """The plots of several runs: quality against size, and against speed where it was measured."""
    found = quality(runs)
    if not found.values:
        return []
    return [_pareto(runs, found, against) for against in costs(runs, found)]


def by_bytes(models: Sequence[Measured]) -> Chart | None:
    """What folders and files of so many bytes are worth: the divergence of those measured alike."""
    found: dict[tuple[str, int, str], dict[int, tuple[Measured, float]]] = {}
    for model in models:
        for both in model.judged().get("agreement", []):
            alike = both["dataset"], both["predictions"], model.judged("baseline").get("name", "")
            if math.isfinite(both["kl"]) and both.get("windows", 1.0) == 1:
                found.setdefault(alike, {})[model.number] = (model, both["kl"])
    (text, *_), told = max(found.items(), key=lambda pair: len(pair[1]), default=(("", 0, ""), {}))
    known = list(told.values())
    if len(known) < 2:
        return None
    series = []
    for label, folder in (("folders", True), (".gguf files", False)):
        own = [(model, kl) for model, kl in known if isinstance(model, Run) == folder]
        points = tuple((model.bytes / 1e6, kl) for model, kl in own)
        marks = tuple(str(model.number) for model, _ in own)
        series += [Series(label, points, line=False, marks=marks, hollow=folder)] if own else []
    least, most = min(kl for _, kl in known), max(kl for _, kl in known)
    axes = Axis("MB"), Axis("KL to the dense model, nats", log=least > 0 and most > LOG * least)
    names = ", ".join(f"{model.number} {model.name}" for model, _ in known)
    title = f"Divergence on {text} against bytes: down and left is better"
    return Chart("bytes", title, *axes, tuple(series), names)


def _pareto(runs: list[Run], found: Quality, against: str) -> Chart:
    axis, values, less = costs(runs, found)[against]
    on = best(runs, found, against)

    def series(label: str, numbers: set[int], line: bool = False) -> Series:
        placed = sorted((values[n], found.values[n], str(n)) for n in numbers)
        points, marks = tuple((x, y) for x, y, _ in placed), tuple(mark for *_, mark in placed)
        return Series(label, points, line and len(points) > 1, marks, hollow=not line)

    drawn = [series("the front: no run beats these", on, line=True)]
    if beaten := values.keys() - on:
        drawn.append(series("beaten: another run is as good or better in both", beaten))
    if found.dense is not None:
        drawn.append(Series("the dense model", ((1.0, found.dense),), line=False, marks=("dense",)))
    shown = [y for one in drawn for _, y in one.points]
    y = Axis(found.label, log=min(shown) > 0 and max(shown) > LOG * min(shown))
    cost, better = ("size", "left") if less else (f"{against} speed", "right")
    title = f"{found.label.capitalize()} against {cost}: down and {better} is better"
    names = ", ".join(f"{run.number} {run.name}" for run in runs if run.number in values)
    return Chart(f"pareto_{against}", title, axis, y, tuple(drawn), f"{names}. {found.note}")
