"""Measured results in a model card: two tables, and metadata for the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from llmprune import measured
from llmprune.measured import Bench, Evaluation, Judged, Text, same_characters, same_tokens
from llmprune.report import Report
from llmprune.run.card import opened
from llmprune.text.sources.typos import PREFIX

QUALITY, SPEED = "## Quality", "## Speed"
LOADING = "## Load it"  # which new sections stand before
HEADS = {
    QUALITY: ["| measured | dense | pruned | protocol |", "|---|---|---|---|"],
    SPEED: ["| measured | dense | pruned | pruned / dense |", "|---|---|---|---|"],
}


def evaluated(folder: Path, report: Report) -> str:
    """Return a folder's card with the measured results: two sections, and metadata for the Hub.

    Everything else in the card stays. A missing card is made first.

    Raises:
        RequestError: the card that is there cannot be read.
    """
    said = opened(folder, report)
    evaluation: Evaluation = report.evaluation or {}
    if "model" in evaluation:
        said.text = _with(said.text, QUALITY, _table(evaluation))
        said.data.model_name = said.data.model_name or folder.resolve().name
        ours = _results(evaluation["model"])
        known = {_identity(result) for result in ours}
        theirs = [result for result in said.data.eval_results or [] if _identity(result) not in known]
        said.data.eval_results = ours + theirs
    if "bench" in evaluation:
        said.text = _with(said.text, SPEED, _speeds(evaluation["bench"]))
    return f"---\n{said.data.to_yaml()}\n---\n{said.text}"


def _speeds(bench: Bench) -> list[str]:
    """Speed and size, the dense model's where it was measured in turns with the pruned one."""
    lines = [f"| {' | '.join(row)} |" for row in measured.speeds(bench)]
    return [*lines, f"| {_cell(bench['protocol'])} | | | |"]


def _table(evaluation: Evaluation) -> list[str]:
    """What was measured of the model, beside the dense one."""
    pruned, lines = evaluation["model"], []
    dense: Judged = evaluation.get("baseline", {})
    for text in pruned["perplexity"]:
        own, bits = _dense_figures(text, dense.get("perplexity", []))
        name, how = _text(text["dataset"]), _cell(text["protocol"])
        lines.append(f"| perplexity, {name} | {own} | {text['perplexity']:.3f} | {how} |")
        if "bits_per_byte" in text:
            lines.append(f"| bits per byte, {name} | {bits} | {text['bits_per_byte']:.4f} | {how} |")
    for both in pruned.get("agreement", []):
        figure, how = measured.divergence_in_words(both)
        lines.append(f"| KL to the dense model, {_text(both['dataset'])} | 0 | {figure} | nats, {how} |")
    for name, values in pruned.get("tasks", {}).items():
        if metric := values["metric"]:
            other = dense.get("tasks", {}).get(name)
            own = f"{other[metric]:.4f}" if other else ""
            how = f"{metric}, {values.get('num_fewshot') or 0}-shot, lm-eval"
            if asked := values.get("questions"):
                how += f", {asked['asked']} of {asked['of']} questions"
            lines.append(f"| {name} | {own} | {values[metric]:.4f} | {how} |")
    return lines


def _dense_figures(text: Text, dense: list[Text]) -> tuple[str, str]:
    """The dense model's perplexity and bits per byte: of the same tokens, and of the same characters."""
    tokens = [f"{other['perplexity']:.3f}" for other in dense if same_tokens(text, other)]
    characters = [other for other in dense if same_characters(text, other)]
    bits = [f"{other['bits_per_byte']:.4f}" for other in characters if "bits_per_byte" in other]
    about = [other for other in dense if other.get("dataset") == text.get("dataset")]
    foreign = about and all(other.get("tokenizer") != text.get("tokenizer") for other in about)
    return next(iter(tokens), "another tokenizer" if foreign else ""), next(iter(bits), "")


def _text(dataset: str) -> str:
    """What a text is called in a table: a file by its name, one with typing errors as such."""
    prefix = PREFIX if dataset.startswith(PREFIX) else ""
    return _cell(prefix + Path(dataset.removeprefix(prefix)).name)


def _cell(text: str) -> str:
    """A text as it is shown in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _results(pruned: Judged) -> list[EvalResult]:
    """The figures as the Hub reads them."""
    found = []
    for text in pruned["perplexity"]:
        name = _text(text["dataset"])
        kind = re.sub(r"[^\w.-]", "-", name)
        found.append(_result("text-generation", name, kind, "perplexity", text["perplexity"]))
    for name, values in pruned.get("tasks", {}).items():
        if metric := values["metric"]:
            found.append(_result("text-generation", name, name, metric, values[metric]))
    return found


def _identity(result: EvalResult) -> tuple[Any, ...]:
    """What tells two figures apart but their values."""
    return (result.task_type, result.dataset_type, result.dataset_name, result.metric_type)


def _result(task: str, name: str, kind: str, metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=task, dataset_name=name, dataset_type=kind, metric_type=metric, metric_value=value
    )


def _with(text: str, title: str, lines: list[str]) -> str:
    """A card's text with this section's table, in place of the one under that title or before the loading."""
    section = f"{title}\n\n" + "\n".join(HEADS[title] + lines) + "\n"
    found = re.compile(rf"^{title}[ \t]*\n+(?:\|.*(?:\n|\Z))*\n*", re.MULTILINE)
    text = text.rstrip() + "\n"
    if not found.search(text):
        before, loading, after = text.partition(f"{LOADING}\n")
        return f"{before}{section}\n{loading}{after}" if loading else f"{text}\n{section}"
    return found.sub(lambda _: section + "\n", text, count=1).rstrip() + "\n"
