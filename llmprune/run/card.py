"""The model card of a pruned checkpoint: what was done to which model, and how to load the result."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from llmprune.checkpoint import reload
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError, first_line
from llmprune.patterns import base as patterns
from llmprune.report import Bench, CalibrationRecord, Evaluation, Judged, RecoveryRecord, Report, Text, Totals

TEXT = """---
{metadata}
---

# {title}

{base} pruned with [llmprune](https://pypi.org/project/llmprune/) {version}.

| | |
|---|---|
| method | {method} |
| pattern | {pattern} |
| sparsity of the pruned layers | {sparsity:.2%} of {prunable:,} weights, {model_sparsity:.2%} of the model |
| parameters | {parameters_before:,} before, {parameters:,} after, {zeros:,} of them zeros by pruning |
| bytes of the weight files | {bytes_before:,} before, {bytes_after:,} after |
| calibration | {calibration} |{recovered}

{about}{use} Its quality has not been measured here unless numbers are given below.

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = {line}
tokenizer = AutoTokenizer.from_pretrained({place})
```
{otherwise}
Checked after writing, in a fresh process with transformers {transformers}: {checked}.

`recipe.yaml` holds the recipe with every default filled in, `llmprune_report.json` what became of each layer.
"""


LICENCE = ("license", "license_name", "license_link")
LOADING = re.compile(rb'^((?:model|tokenizer) = Auto\w+\.from_pretrained\()"(?:[^"\\\n]|\\.)*"', re.MULTILINE)
CUT_ALIKE = ("dataset", "split", "length", "stride", "bos")  # what a text's windows hang on but its tokens
QUALITY, SPEED = "## Quality", "## Speed"
HEAD = ["| measured | dense | pruned | protocol |", "|---|---|---|---|"]
MASKED = (
    "The zeros are stored: this checkpoint is as large as the dense one and runs as fast in a runtime that "
    "does not use them."
)
CUT = "Whole {units} are gone: the checkpoint is smaller, and less is computed."
OTHERWISE = """
Its layers differ in size, which `modeling_llmprune.py` tells transformers. Where llmprune is installed,
`import llmprune` before loading does instead of `trust_remote_code=True`.
"""


def make(report: Report, source: Source | None, out: Path) -> str:
    """The card's text, with the metadata that the Hub shows."""
    folder = out.resolve().name
    recipe, totals = report.recipe, report.totals
    base = report.model["source"] or report.model["family"]
    checked = report.reload
    assert checked is not None, "a card tells how the result was checked"
    difference = checked["max_abs_logit_difference"]
    return TEXT.format(
        metadata=_metadata(report, source).to_yaml(),
        title=folder,
        base=base,
        version=report.versions["llmprune"],
        transformers=report.versions["transformers"],
        method=recipe["method"]["name"],
        about=f"{report.about}\n\n" if report.about else "",
        pattern=_pattern(recipe["pattern"]),
        sparsity=totals["sparsity"],
        prunable=totals["prunable_parameters"],
        model_sparsity=totals["model_sparsity"],
        zeros=totals["zero_parameters"],
        parameters_before=totals["parameters_before"],
        use=_use(recipe["pattern"], totals),
        otherwise=OTHERWISE if recipe["layout"] == "per_layer" else "",
        parameters=totals["parameters_after"],
        bytes_before=totals["bytes_before"],
        bytes_after=totals["bytes_after"],
        calibration=_calibration(report.calibration),
        recovered=_recovered(report.recovery),
        line=_line(folder, checked["line"]),
        place=_literal(folder),
        checked=checked["compared"]
        + ("" if difference is None else f", which differ by at most {difference:.1g}"),
    )


def evaluated(folder: Path, report: Report) -> str:
    """A folder's card with what was measured: sections of its own, and what the Hub shows.

    Whatever else somebody wrote into the card stays; one that is gone is written anew.

    Raises:
        RequestError: the card that is there cannot be read.
    """
    card = opened(folder, report)
    evaluation: Evaluation = report.evaluation or {}
    if "model" in evaluation:
        card.text = _with(card.text, QUALITY, _table(evaluation))
        card.data.model_name = card.data.model_name or folder.resolve().name
        ours = _results(evaluation["model"])
        known = {_identity(result) for result in ours}
        theirs = [result for result in card.data.eval_results or [] if _identity(result) not in known]
        card.data.eval_results = ours + theirs
    if "bench" in evaluation:
        card.text = _with(card.text, SPEED, _speeds(evaluation["bench"]))
    return f"---\n{card.data.to_yaml()}\n---\n{card.text}"


def opened(folder: Path, report: Report) -> Any:
    """A folder's card, or a new one if there is none.

    Raises:
        RequestError: it cannot be read.
    """
    file = folder / "README.md"
    if not file.is_file():
        return ModelCard(make(report, None, folder))
    try:
        return ModelCard(file.read_text(encoding="utf-8-sig"))
    except Exception as error:  # somebody wrote into it, and YAML and the Hub's client fail in many ways
        why = first_line(error)
        raise RequestError(
            "save", f"{file} cannot be read as a model card ({why}); mend its metadata, or move it away"
        ) from error


@contextmanager
def addressed(folder: Path, repo: str) -> Iterator[None]:
    """Let a folder's card name the repository that it is pushed to; if that fails, it is as it was."""
    file = folder / "README.md"
    before = file.read_bytes() if file.is_file() else b""
    after = LOADING.sub(lambda line: line[1] + _literal(repo).encode(), before)
    if after == before:
        yield
        return
    file.write_bytes(after)
    try:
        yield
    except BaseException:
        file.write_bytes(before)
        raise


def _line(folder: str, checked: str) -> str:
    """How to load a folder from where it lies, as it was loaded when it was checked."""
    trust = ", trust_remote_code=True" if checked.endswith(", trust_remote_code=True)") else ""
    return reload.LINE.format(folder=_literal(folder)[1:-1], trust=trust)


def _literal(name: str) -> str:
    """A name as Python reads it, in the quotes of the card."""
    return json.dumps(name, ensure_ascii=False)


def _with(text: str, title: str, lines: list[str]) -> str:
    """A card's text with this section's table, in place of the one that stands under that title."""
    section = f"{title}\n\n" + "\n".join(HEAD + lines) + "\n"
    found = re.compile(rf"^{title}[ \t]*\n+(?:\|.*(?:\n|\Z))*\n*", re.MULTILINE)
    text = text.rstrip() + "\n"
    if not found.search(text):
        return f"{text}\n{section}"
    return found.sub(lambda _: section + "\n", text, count=1).rstrip() + "\n"


def _speeds(bench: Bench) -> list[str]:
    """Tokens per second, the dense model's where it was measured in turns with the pruned one."""
    rates = [(one["prefill_tokens_per_s"], one["decode_tokens_per_s"]) for one in bench["models"]]
    lines = []
    for part, dense, pruned in zip(("prefill", "decode"), rates[0], rates[-1], strict=True):
        own = f"{dense:.1f}" if len(rates) > 1 else ""
        lines.append(f"| {part}, tokens per second | {own} | {pruned:.1f} | {bench['protocol']} |")
    return lines


def _table(evaluation: Evaluation) -> list[str]:
    """What was measured of the model, beside the dense one."""
    pruned, lines = evaluation["model"], []
    dense: Judged = evaluation.get("baseline", {})
    for text in pruned["perplexity"]:
        own, name = _dense_figure(text, dense.get("perplexity", [])), _cell(Path(text["dataset"]).name)
        how = _cell(text["protocol"])
        lines.append(f"| perplexity, {name} | {own} | {text['perplexity']:.3f} | {how} |")
    for name, values in pruned.get("tasks", {}).items():
        if metric := values["metric"]:
            other = dense.get("tasks", {}).get(name)
            own = f"{other[metric]:.4f}" if other else ""
            how = f"{metric}, {values.get('num_fewshot') or 0}-shot, lm-eval"
            if asked := values.get("questions"):
                how += f", {asked['asked']} of {asked['of']} questions"
            lines.append(f"| {name} | {own} | {values[metric]:.4f} | {how} |")
    return lines


def _dense_figure(text: Text, dense: list[Text]) -> str:
    """The dense model's perplexity, where it was measured alike: per token, and so of the same tokens."""
    alike = [other for other in dense if all(text.get(key) == other.get(key) for key in CUT_ALIKE)]
    same = [other for other in alike if text.get("tokenizer") == other.get("tokenizer")]
    found = [other["perplexity"] for other in same if text.get("windows") == other.get("windows")]
    if found:
        return f"{found[0]:.3f}"
    return "another tokenizer" if alike and not same else ""


def _cell(text: str) -> str:
    """A text as it is shown in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _results(pruned: Judged) -> list[EvalResult]:
    """The figures as the Hub reads them."""
    found = []
    for text in pruned["perplexity"]:
        name = Path(text["dataset"]).name
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


def _metadata(report: Report, source: Source | None) -> ModelCardData:
    recipe, theirs = report.recipe, _card_of(source)
    ours = source is not None and (source.folder / "llmprune_report.json").is_file()
    pruned_before = theirs.get("base_model") if ours else None
    licence: dict[str, Any] = {key: theirs.get(key) for key in LICENCE}
    base = report.model["source"] if report.model.get("revision") else pruned_before
    return ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        **licence,
        tags=["pruned", "llmprune", recipe["method"]["name"], _pattern(recipe["pattern"])],
    )


def _card_of(source: Source | None) -> dict[str, Any]:
    """What the card of the model that was pruned says; its licence stays in force."""
    if source is None or not (source.folder / "README.md").is_file():
        return {}
    try:
        said: dict[str, Any] = ModelCard.load(source.folder / "README.md").data.to_dict()
    except Exception:  # somebody else's card, in any state; only what it says is lost
        return {}
    return said


def _use(pattern: Any, totals: Totals) -> str:
    """What removing buys: nothing where all of it stands in the file as zeros."""
    if totals["parameters_after"] >= totals["parameters_before"]:
        return MASKED
    return CUT.format(units=patterns.build(pattern, {}).removed)


def _pattern(pattern: Any) -> str:
    return str(pattern["name"] if isinstance(pattern, dict) else pattern)


def _calibration(record: CalibrationRecord | None) -> str:
    if record is None:
        return "none"
    windows = f"{record['samples']} windows of {record['length']} tokens"
    return f"{record['dataset']}, {windows}, seed {record['seed']}"


def _recovered(record: RecoveryRecord | None) -> str:
    """A row of its own, if anything was recovered."""
    if record is None:
        return ""
    return f"\n| recovered by | {record['name']}, on {_calibration(record['calibration'])} |"
