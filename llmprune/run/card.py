"""The model card of a pruned checkpoint: what was done to which model, and how to load the result."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from llmprune.checkpoint import reload
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError, first_line
from llmprune.measured import lowest, spelled
from llmprune.patterns import base as patterns
from llmprune.report import CalibrationRecord, Choice, RecoveryRecord, Report, SiteRecord, StepRecord
from llmprune.run import card_picture, card_serving

TEXT = """---
{metadata}
---

# {title}

{base} pruned with [llmprune](https://pypi.org/project/llmprune/) {version}. {use}

| | dense | this model |
|---|---|---|
| parameters | {parameters_before:,} | {parameters:,}, {zeros:,} of them zeros by pruning |
| bytes of the weight files | {bytes_before:,} | {bytes_after:,} |

![What is left beside the dense model, and what went from each block]({picture})

Its quality has not been measured here unless numbers are given below.

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = {line}
tokenizer = AutoTokenizer.from_pretrained({place})
```
{otherwise}{served}
## How it was made

| | |
|---|---|{steps}
| method | {method} |
| pattern | {pattern} |
| allocation, repair | {allocation}, {repair} |
| sparsity of the pruned layers | {sparsity:.2%} of {prunable:,} weights, {model_sparsity:.2%} of the model |
| calibration | {calibration} |{mtp_heads}{recovered}

{about}Checked after writing, in a fresh process with transformers {transformers}: {checked}.

`recipe.yaml` holds the recipe with every default filled in, `llmprune_report.json` what became of each layer.
"""


LICENCE = ("license", "license_name", "license_link")
LOADING = re.compile(rb'^((?:model|tokenizer) = Auto\w+\.from_pretrained\()"(?:[^"\\\n]|\\.)*"', re.MULTILINE)
MASKED = (
    "The zeros are stored: this checkpoint is as large as the dense one and runs as fast in a runtime that "
    "does not use them."
)
CUT = "{units} are gone: the checkpoint is smaller, and less is computed."
OTHERWISE = """
Its layers differ in size, which `modeling_llmprune.py` tells transformers. Where llmprune is installed,
`import llmprune` before loading does instead of `trust_remote_code=True`.
"""


def make(report: Report, source: Source | None, out: Path, written: Path) -> str:
    """The card's text, with the metadata that the Hub shows.

    Args:
        report: of the checkpoint.
        source: of the model that was pruned; None for one in memory.
        out: the folder that it will be in.
        written: where its files are now.
    """
    folder = out.resolve().name
    recipe, totals = report.recipe, report.totals
    base = report.model["source"] or report.model["family"]
    checked = report.reload
    assert checked is not None, "a card tells how the result was checked"
    difference = checked["max_abs_logit_difference"]
    return TEXT.format(
        metadata=_metadata(report, source).to_yaml(),
        title=folder,
        picture=card_picture.FILE,
        base=base,
        version=report.versions["llmprune"],
        transformers=report.versions["transformers"],
        steps=_earlier(report.steps),
        method=recipe["method"]["name"],
        about=f"{report.about}\n\n" if report.about else "",
        pattern=_pattern(recipe["pattern"]),
        allocation=_allocation(report),
        repair=recipe["repair"]["name"],
        sparsity=totals["sparsity"],
        prunable=totals["prunable_parameters"],
        model_sparsity=totals["model_sparsity"],
        zeros=totals["zero_parameters"],
        parameters_before=totals["parameters_before"],
        use=_use(report),
        otherwise=OTHERWISE if recipe["layout"] == "per_layer" else "",
        served=card_serving.section(written, folder),
        parameters=totals["parameters_after"],
        bytes_before=totals["bytes_before"],
        bytes_after=totals["bytes_after"],
        calibration=_counted(report) or _calibration(report.calibration),
        mtp_heads=_mtp_heads(report.mtp_heads),
        recovered=_recovered(report.recovery),
        line=_line(folder, checked["line"]),
        place=_literal(folder),
        checked=checked["compared"]
        + ("" if difference is None else f", which differ by at most {difference:.1g}"),
    )


def opened(folder: Path, report: Report) -> Any:
    """A folder's card, or a new one if there is none.

    Raises:
        RequestError: it cannot be read.
    """
    file = folder / "README.md"
    if not file.is_file():
        return ModelCard(make(report, None, folder, folder))
    try:
        return ModelCard(file.read_text(encoding="utf-8-sig"))
    except Exception as error:  # edited by hand: YAML and the Hub's client fail in many ways
        why = first_line(error)
        raise RequestError(
            "save", f"{file} cannot be read as a model card ({why}); mend its metadata, or move it away"
        ) from error


@contextmanager
def addressed(folder: Path, repo: str) -> Iterator[None]:
    """Name the repository in the card's loading lines while it is pushed; restore the card on failure."""
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
    """The line that loads a folder, with the arguments that the check used."""
    trust = ", trust_remote_code=True" if checked.endswith(", trust_remote_code=True)") else ""
    return reload.LINE.format(folder=_literal(folder)[1:-1], trust=trust)


def _literal(name: str) -> str:
    """A name as a Python string literal in double quotes."""
    return json.dumps(name, ensure_ascii=False)


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
    """Metadata of the pruned model's own card; its licence stays in force."""
    if source is None or not (source.folder / "README.md").is_file():
        return {}
    try:
        said: dict[str, Any] = ModelCard.load(source.folder / "README.md").data.to_dict()
    except Exception:  # another author's card, in any state; only its metadata is lost
        return {}
    return said


def _use(report: Report) -> str:
    """What pruning gains: nothing in size where removed weights are stored as zeros."""
    every = [(step["recipe"], step["totals"]) for step in report.steps or ()]
    every.append((report.recipe, report.totals))
    smaller = [recipe for recipe, told in every if told["parameters_after"] < told["parameters_before"]]
    gone = " and ".join(dict.fromkeys(patterns.build(one["pattern"], {}).removed for one in smaller))
    return CUT.format(units=gone[0].upper() + gone[1:]) if gone else MASKED


def _earlier(steps: Sequence[StepRecord] | None) -> str:
    """A table row for every step before the last one, which the other rows are about."""
    rows = []
    for number, step in enumerate(steps or (), 1):
        recipe = step["recipe"]
        parts = [recipe["method"]["name"], _pattern(recipe["pattern"]), recipe["allocation"]["name"]]
        said = ", ".join([*parts, recipe["repair"]["name"]])
        share = step["totals"]["sparsity"]
        rows.append(f"\n| before, step {number} | {said}: {share:.2%} of the pruned layers |")
    return "".join(rows)


def _allocation(report: Report) -> str:
    """The allocation's name, and which of several it chose."""
    name, tried = report.recipe["allocation"]["name"], report.budgets
    return f"{name} ({spelled(tried[lowest(tried)]['allocation'])})" if tried else name


def _pattern(pattern: str | Choice) -> str:
    return str(pattern["name"] if isinstance(pattern, dict) else pattern)


def _calibration(record: CalibrationRecord | None) -> str:
    if record is None:
        return "none"
    windows = f"{record['samples']} windows of {record['length']} tokens"
    bos = {True: ", BOS in front of each", False: ", no BOS", None: ""}[record.get("bos")]
    return f"{record['dataset']}, {windows}{bos}, seed {record['seed']}"


def _counted(report: Report) -> str:
    """The text whose tokens stay, if the vocabulary was chosen on one."""
    said = report.vocabulary
    if said is None or said["text"] is None:
        return ""
    before, after = said["text_tokens_before"], said["text_tokens_after"]
    return f"{said['text']}, read whole: {before:,} tokens before, {after:,} now"


def _mtp_heads(records: Sequence[SiteRecord] | None) -> str:
    """A table row about heads for multi-token prediction, unless they are as before."""
    if records is None:
        return ""
    before, after = (records[0].units if records else None) or (0, 0)
    said = f"{len(records)}, with {after} of {before} experts" if records else "left out"
    return f"\n| heads for multi-token prediction | {said} |"


def _recovered(record: RecoveryRecord | None) -> str:
    """A table row about the recovery, if there was one."""
    if record is None:
        return ""
    said = str(record["name"])
    if "trained_tokens" in record:
        teacher = "the text alone" if record["loss"] == "text" else "the dense model's predictions"
        said += f", {record['trained_tokens']:,} tokens of {teacher}"
    return f"\n| recovered by | {said}, on {_calibration(record['calibration'])} |"
