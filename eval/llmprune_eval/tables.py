"""What is said of a run, as rows of words."""

from __future__ import annotations

import math
from typing import Any

from llmprune import measured
from llmprune.measured import same_characters, same_tokens, trial_in_words
from llmprune.report import Memory, SiteRecord, Spent, Time
from llmprune_eval import candidates, figures
from llmprune_eval.markup import element
from llmprune_eval.runs import Measured, Run

UNITS = ("bytes", "kB", "MB", "GB", "TB")


def sentence(run: Run) -> str:
    """What was done, in a sentence."""
    record, totals = run.record, run.record.totals
    blocks = len({site.block for site in record.sites})
    gone = f"{percent(totals['sparsity'])} of the weights of {len(record.sites)} layers in {blocks} blocks"
    after = f", then recovered by {record.recovery['name']}" if record.recovery else ""
    where = record.model["source"] or "a model in memory"
    method = name_of(record.recipe["method"])
    return f"{where} ({record.model['family']}), less {gone}, chosen by {method}{after}."


def done(run: Run) -> list[tuple[str, object]]:
    """What was done, and what it took."""
    record, totals, recipe, share = run.record, run.record.totals, run.record.recipe, percent(run.size)
    rows: list[tuple[str, object]] = [
        ("method", described(recipe["method"])),
        ("pattern", described(recipe["pattern"])),
        ("allocation", described(recipe["allocation"])),
        ("repair", described(recipe["repair"])),
        ("layout", recipe["layout"] or "as it was, with zeros"),
        ("propagation", recipe["propagation"]),
        ("sparsity asked", percent(recipe["sparsity"])),
        ("sparsity reached", f"{percent(totals['sparsity'])} of the pruned layers, {_of_model(run)}"),
        ("budget", _budget(record.sites)),
        *(("budget tried", trial_in_words(trial)) for trial in record.budgets or ()),
        *(("candidate", sentence) for sentence in candidates.sentences(record.planned)),
        *(("warning", sentence) for sentence in record.warnings),
        ("parameters", f"{totals['parameters_before']:,} before, {totals['parameters_after']:,} after"),
        (
            "bytes",
            f"{totals['bytes_before']:,} before, {totals['bytes_after']:,} after ({share})",
        ),
        ("mean output error", _error(run)),
        ("time", _time(record.time)),
        ("peak memory", _memory(record.memory)),
    ]
    if record.recovery:
        rows.append(("recovery", f"{record.recovery['name']}, {_seconds(record.recovery['time'])}"))
    if record.reload:
        rows += [("load it with", element("code", record.reload["line"])), ("checked", _checked(run))]
    return rows


def _of_model(run: Run) -> str:
    totals = run.record.totals
    zeros = f" ({totals['zero_parameters']:,} stored zeros)" if totals["zero_parameters"] else ""
    return f"{percent(totals['model_sparsity'])} of the model{zeros}"


def _budget(sites: list[SiteRecord]) -> str:
    asked = [site.asked for site in sites]
    low, high = percent(min(asked)), percent(max(asked))
    return f"{low} from every layer" if low == high else f"from {low} to {high} of a layer"


def _error(run: Run) -> str:
    return "not measured" if run.error is None else f"{run.error:.4f}{figures.before_recovery(run)}"


def _time(spent: Time) -> str:
    floor = spent["forward_floor_s"]
    plain = f"; one plain forward of the text takes {floor:.1f} s" if floor else ""
    return f"{_seconds(spent)}{plain}"


def _seconds(spent: Spent) -> str:
    return f"{spent['total_s']:.1f} s"


def _memory(memory: Memory) -> str:
    host, device = memory["peak_rss_bytes"], memory["peak_device_bytes"]
    return f"{size(host)} of the process" + (f", {size(device)} on the device" if device else "")


def _checked(run: Run) -> str:
    reload = run.record.reload
    assert reload is not None
    difference = reload["max_abs_logit_difference"]
    off = "" if difference is None else f", which differ by at most {difference:.1g}"
    version = run.record.versions.get("transformers")
    return f"{reload['compared']}{off}{f', with transformers {version}' if version else ''}"


def calibration(run: Run) -> list[tuple[str, object]]:
    """The text, and what the numbers may depend on."""
    record = run.record
    rows: list[tuple[str, object]] = [("text", "none was needed")]
    if found := record.calibration:
        rows = [
            ("text", found["dataset"]),
            ("windows", f"{found['samples']:,} windows of {found['length']:,} tokens"),
            ("BOS in front of each", {True: "yes", False: "no", None: "-"}[found.get("bos")]),
            ("seed", "-" if found["seed"] is None else found["seed"]),
            ("tokens' sha256", element("code", found["sha256"])),
        ]
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    return [*rows, ("versions", versions or "-")]


def texts(run: Measured) -> list[list[object]]:
    """Perplexities and bits per byte beside the dense model's, each where it can be compared; divergences."""
    rows: list[list[object]] = []
    for text in run.texts():
        name, how = text.get("dataset", figures.UNNAMED), text.get("protocol", "-")
        tokens = [other for other in run.texts("baseline") if same_tokens(text, other)]
        characters = [other for other in run.texts("baseline") if same_characters(text, other)]
        after, before = text["perplexity"], tokens[0]["perplexity"] if tokens else None
        rows.append([name, "perplexity", *_compared(before, after, ".3f"), how])
        if bits := text.get("bits_per_byte"):
            before = characters[0].get("bits_per_byte") if characters else None
            rows.append([name, "bits per byte", *_compared(before, bits, ".4f"), how])
    for both in run.judged().get("agreement", []):
        figure, how = measured.divergence_in_words(both)
        rows.append([both["dataset"], "KL divergence, nats", "-", figure, "-", how])
    return rows


def _compared(before: float | None, after: float, style: str) -> list[object]:
    if not before:
        return ["-", f"{after:{style}}", "-"]
    return [f"{before:{style}}", f"{after:{style}}", f"{after / before:.3f}"]


def scores(run: Measured) -> list[list[object]]:
    """Scores of tasks."""
    before, after = (run.judged(role).get("tasks", {}) for role in ("baseline", "model"))
    return [
        [task, metric, _score(before.get(task, {}), metric), _score(values, metric)]
        for task, values in after.items()
        for metric in _metrics(values)
    ]


def _metrics(values: dict[str, Any]) -> list[str]:
    """The metric that counts, or all there are."""
    if isinstance(values.get("metric"), str):
        return [values["metric"]]
    return [key for key in values if "stderr" not in key and _number(values[key]) and key != "num_fewshot"]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _score(values: dict[str, Any], metric: str) -> str:
    if not _number(values.get(metric)):
        return "-"
    error = values.get(f"{metric}_stderr", values.get("stderr"))
    return f"{values[metric]:.4f}" + (f" ± {error:.4f}" if _number(error) else "")


def speeds(run: Measured) -> list[list[object]]:
    """Speed and size, and their ratio where the dense model was measured in turns."""
    return [[cell or "-" for cell in row] for row in measured.speeds(run.bench)]


def sites(run: Run) -> list[list[str]]:
    """Every pruned layer."""
    return [
        [
            *(site.name, percent(site.asked), percent(site.reached)),
            *(" x ".join(map(str, shape)) for shape in (site.shape_before, site.shape_after)),
            "-" if site.error is None else f"{site.error:.4f}",
        ]
        for site in run.record.sites
    ]


def described(part: Any) -> str:
    """A recipe's part with its options."""
    if not isinstance(part, dict):
        return "none" if part is None else str(part)
    options = ", ".join(f"{key} {value}" for key, value in part.items() if key != "name")
    return f"{name_of(part)} ({options})" if options else name_of(part)


def name_of(part: Any) -> str:
    """The name of a recipe's part, with or without options."""
    return str(part.get("name", "-") if isinstance(part, dict) else part)


def percent(share: float) -> str:
    """A share, to a tenth of a percent."""
    return f"{100 * share:.1f} %"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    power = min(int(math.log10(max(count, 1)) // 3), len(UNITS) - 1)
    return f"{count / 1000**power:.3g} {UNITS[power]}"
