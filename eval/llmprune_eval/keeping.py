"""Keep what was measured in the report and the card of a pruned checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from llmprune import report
from llmprune.checkpoint.files import write_atomically
from llmprune.errors import RequestError
from llmprune.measured import Evaluation
from llmprune.progress import say
from llmprune.run import card, card_picture, card_results
from llmprune.text import bos
from llmprune.text.windows import sharing
from llmprune_eval import evaluation, models, runs
from llmprune_eval.models import engine_file
from llmprune_eval.tasks import Ask
from llmprune_eval.windows import Protocol, settled, windows_of

# What every pruned model's perplexity can be measured on, offline too, and how.
TEXT, PROTOCOL = "builtin", Protocol(windows=16)


def require_ours(models: list[str]) -> None:
    """Refuse a folder that llmprune did not write, that cannot be written, or whose card cannot be read.

    Raises:
        RequestError: it names the first.
    """
    for name in models:
        if engine_file(name) and os.access(Path(name).parent, os.W_OK):
            continue  # what is measured goes into a file beside it
        found = report.read(Path(name))
        if found is None:
            raise RequestError("save", f"{name} is no folder that llmprune wrote; leave out --save")
        card.opened(Path(name), found)
        if not os.access(name, os.W_OK):
            raise RequestError("save", f"{name} cannot be written; mend that, or leave out --save")


def judge(folder: Path, dense: str, asked: Ask, where: dict[str, Any]) -> None:
    """Measure a model that was just pruned beside the dense one, unless that has been done, and keep it.

    Raises:
        JobError: it cannot be kept; the figures were told before.
    """
    done = report.read(folder)
    if done is not None and (done.evaluation or {}).get("asked") == _plain(asked):
        say(f"{folder} has been evaluated already")
        return
    names = {"baseline": dense, "model": str(folder)}
    results = evaluation.evaluate(names, [TEXT], PROTOCOL, asked, where)
    for found in results.values():
        say(found["name"])
        for what, figure in evaluation.rows(found):
            say(f"{what}  {figure}")
    keep(results, _plain(asked))


def require_unseen(model: str, trust: bool) -> Callable[[Tensor], None]:
    """Return what refuses windows [N, L] of a model's tokens that share text with those that `judge` reads.

    It raises RequestError where 64 tokens in a row, or a whole shorter window, are in both.
    """

    def check(windows: Tensor) -> None:
        found = models.find(model, trust=trust, scored=True)
        protocol = settled(PROTOCOL, found.tokenizer, found.config)
        read = torch.stack([window.ids for window in windows_of(found.tokenizer, TEXT, protocol)])
        begin = torch.tensor(bos.tokens(found.tokenizer, "auto", "bos"))
        if shared := int(sharing(_without(windows, begin), _without(read, begin)).sum()):
            raise RequestError(
                "calibration",
                f"{shared} of {len(windows)} windows share text with those that --eval measures on; name "
                "another text, or leave out --eval",
            )

    return check


def _without(windows: Tensor, begin: Tensor) -> Tensor:
    """Windows [N, L] without the tokens that all begin with, where they do: no text stands there."""
    count = len(begin)
    return windows[:, count:] if (windows[:, :count] == begin).all() else windows


def _plain(asked: Ask) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(asked), default=str))
    return plain


def keep(results: dict[str, Any], asked: dict[str, Any] | None = None) -> None:
    """Add to every model's report and card its own figures and the baseline's, without single answers.

    What was measured before stays, but for what has been measured alike.

    Raises:
        JobError: they cannot be written, and report and card are as they were.
    """
    dense = _short(results["baseline"]) if "baseline" in results else None
    for role, found in results.items():
        if role != "baseline":
            _add(Path(found["name"]), partial(_merged, model=_short(found), dense=dense, asked=asked))


def keep_speed(folder: Path, found: dict[str, Any]) -> None:
    """Add what a bench measured to a model's report and card.

    Raises:
        JobError: as `keep`.
    """
    _add(folder, lambda known: known | {"bench": found})


def _add(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the evaluation in a report, and tell it in the card; or that in the file beside a .gguf file."""
    if folder.suffix == ".gguf":
        file = runs.beside(folder)
        known = json.loads(file.read_text()) if file.is_file() else {}
        write_atomically({file: json.dumps(change(known), indent=1)})
        return
    kept = report.read(folder)
    assert kept is not None
    kept.evaluation = cast(Evaluation, change(dict(kept.evaluation or {})))
    said = card_results.evaluated(folder, kept)
    picture = {folder / card_picture.FILE: card_picture.drawn(kept)} if card_picture.FILE in said else {}
    write_atomically({folder / report.FILE: kept.to_json(), folder / "README.md": said, **picture})


def _merged(
    known: dict[str, Any], model: dict[str, Any], dense: dict[str, Any] | None, asked: dict[str, Any] | None
) -> dict[str, Any]:
    """An evaluation with new figures of the model, and of the dense one if it was measured too."""
    figures = {**known, "model": _joined(known.get("model", {}), model)}
    before = known.get("baseline", {})
    if dense is not None and before.get("name") != dense["name"]:
        before = {}  # two models' figures must not pass for one's
    tasks = {name: values for name, values in before.get("tasks", {}).items() if name not in model["tasks"]}
    if dense is not None:
        figures["baseline"] = _joined(before | {"tasks": tasks}, dense)
    elif before:
        figures["baseline"] = before | {"tasks": tasks}
    scored = (known.get("asked") or {}).get("tasks", [])
    whole = before == known.get("baseline", {}) and not {*scored} & {*model["tasks"]}
    return figures | {"asked": asked or (known.get("asked") if whole else None)}


def _joined(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One model's figures: the new ones, and the earlier ones that were measured otherwise."""
    measured = [_key(text) for text in new["perplexity"]]
    texts = [text for text in known.get("perplexity", []) if _key(text) not in measured]
    both = {key: known.get(key, {}) | new.get(key, {}) for key in ("tasks", "versions")}
    if compared := known.get("comparison"):
        told = {name: value for name, value in new.get("comparison", {}).items() if value}
        tasks = compared.get("tasks", {}) | told.get("tasks", {})
        both["comparison"] = compared | told | {"tasks": tasks}
    return {**known, **new, **both, "perplexity": texts + new["perplexity"]}


def _key(text: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(text.get(name) for name in runs.PROTOCOL)


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """Without the scores of single questions, which are thousands, the losses of windows, and answers."""
    tasks = {
        name: {key: value for key, value in values.items() if key != "examples"}
        for name, values in found.get("tasks", {}).items()
    }
    talk = {key: value for key, value in found.get("talk", {}).items() if key != "answers"}
    texts = [{k: v for k, v in text.items() if k != "losses"} for text in found["perplexity"]]
    return {**found, "perplexity": texts, "tasks": tasks, **({"talk": talk} if talk else {})}
