"""How a model answers: whether it stops by itself, repeats itself, keeps instructions, agrees with dense.

The prompts of `suites/talk.jsonl` were written for this project. Answers are greedy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from llmprune.progress import track
from llmprune_eval import bootstrap, instructions
from llmprune_eval.bootstrap import FEWEST
from llmprune_eval.comparison import averaged, paired
from llmprune_eval.tasks import SUITES, template

BUDGET = 256  # tokens of an answer
ALIKE = 32  # first tokens that are compared with the dense model's
GRAM = 4  # tokens in a row whose repetition counts
CONTEXT = 1024  # tokens that hold any prompt and its answer
AT_ONCE = 16  # prompts
PROMPTS = 64
END = -1  # stands for what ended an answer that came as text
FIGURES = ("stopped", "repeated", "kept")
FILE = SUITES / "talk.jsonl"


@dataclass(frozen=True)
class Answer:
    """To one prompt."""

    ids: list[int]
    text: str
    stopped: bool
    """Whether the model ended it, within the budget."""

    kept: float
    """Share of the instructions."""

    @property
    def repeated(self) -> float:
        """Share of its runs of four tokens that were there before."""
        runs = [tuple(self.ids[n : n + GRAM]) for n in range(len(self.ids) - GRAM + 1)]
        return 1 - len(set(runs)) / len(runs) if runs else 0.0


def prompts(limit: int) -> list[dict[str, Any]]:
    """The first so many prompts, with their checks."""
    return [json.loads(line) for line in FILE.read_text().splitlines()][:limit]


@torch.no_grad()
def measure(model: Any, tokenizer: Any, limit: int) -> dict[str, Any]:
    """What a model makes of the prompts.

    Args:
        model: in transformers, an `Engine` or an `Endpoint`.
        tokenizer: its own, with a chat template.
        limit: how many prompts, the first ones.

    Returns:
        `stopped`, `repeated`, `kept` (means), `tokens` (mean length), the `intervals` of these, the
        `protocol`, and the `answers`.
    """
    asked = prompts(limit)
    conversations = [[{"role": "user", "content": one["prompt"]}] for one in asked]
    ids = [
        tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=True)["input_ids"]
        for one in conversations
    ]
    ends = _ends(model, tokenizer)
    if hasattr(model, "complete"):
        written, ends = _by_endpoint(model, tokenizer, ids), {*ends, END}
    elif hasattr(model, "read"):
        written = _by_engine(model, ids, ends)
    else:
        written = _by_transformers(model, ids, ends)
    answers = [
        _answer(tokenizer, found, ends, one["checks"]) for found, one in zip(written, asked, strict=True)
    ]
    each = {name: [float(getattr(one, name)) for one in answers] for name in FIGURES}
    each["tokens"] = [float(len(one.ids)) for one in answers]
    return {
        **{name: _mean(values) for name, values in each.items()},
        "intervals": {name: bootstrap.spread(values) for name, values in each.items()},
        "protocol": (
            f"{len(asked)} prompts, the template's own system prompt, greedy, at most {BUDGET} tokens, "
            f"template {template(tokenizer)}{_where(model)}"
        ),
        "answers": [asdict(one) | {"repeated": one.repeated} for one in answers],
    }


def compare(dense: dict[str, Any], pruned: dict[str, Any]) -> dict[str, Any]:
    """Differences of the pruned model's figures to the dense model's, in pairs of answers.

    Returns:
        By figure what `comparison.paired` says, and whether it is `flagged`: of six answers or more, the
        interval leaves out zero. `agreement` is the mean share of the dense answer's first 32 tokens before
        the first that differs, and `longer` the ratio of the mean lengths, with `longer_interval`.
    """
    found: dict[str, Any] = {}
    for name in FIGURES:
        row = paired(*(_numbered([one[name] for one in talk["answers"]]) for talk in (dense, pruned)))
        low, high = row["interval"]
        found[name] = row | {"flagged": row["questions"] >= FEWEST and (low > 0 or high < 0)}
    pairs = zip(dense["answers"], pruned["answers"], strict=True)
    shares = _numbered([_agreement(before["ids"], after["ids"]) for before, after in pairs])
    same = averaged([(dict.fromkeys(shares, 0.0), shares)])
    found["agreement"] = {"value": same["difference"], "interval": same["interval"], "level": same["level"]}
    found["longer"] = pruned["tokens"] / max(dense["tokens"], 1)
    found["longer_interval"] = _times(*([len(one["ids"]) for one in t["answers"]] for t in (dense, pruned)))
    return found


def rows(found: dict[str, Any], compared: dict[str, Any] | None) -> list[tuple[str, str]]:
    """One model's figures as a table."""
    names = {"stopped": "stops by itself", "repeated": "repeated 4-grams", "kept": "instructions kept"}
    table = []
    for name, what in names.items():
        said = f"{found[name]:.1%}"
        if compared:
            row = compared[name]
            low, high = row["interval"]
            flag = ", flagged" if row["flagged"] else ""
            said += (
                f", difference {row['difference']:+.1%} [{low:+.1%}, {high:+.1%}] at {row['level']:.0%}{flag}"
            )
        table.append((f"  talk: {what}", said))
    if compared:
        low, high = compared["agreement"]["interval"]
        said = f"{compared['agreement']['value']:.1%} [{low:.1%}, {high:.1%}]"
        table.append((f"  talk: first {ALIKE} tokens as dense", said))
        said = f"{found['tokens']:.0f} tokens, {compared['longer']:.2f}x dense"
        if ends := compared["longer_interval"]:
            said += f" [{ends[0]:.2f}, {ends[1]:.2f}]"
        table.append(("  talk: length", said))
    return table


def _agreement(dense: list[int], pruned: list[int]) -> float:
    """The share of the dense answer's first tokens before the first that differs; if empty, all or none."""
    first = dense[:ALIKE]
    same = [a == b for a, b in zip(first, pruned, strict=False)]
    equal = same.index(False) if False in same else len(same)
    return equal / len(first) if first else float(not pruned)


def _times(dense: list[int], pruned: list[int]) -> list[float] | None:
    """The interval of how many times as long answers are."""
    if len(dense) < FEWEST:
        return None
    before, after = bootstrap.paired(dense, pruned).T
    return bootstrap.interval(after / np.maximum(before, 1))


def _numbered(values: list[Any]) -> dict[str, float]:
    return {str(number): float(value) for number, value in enumerate(values)}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _answer(tokenizer: Any, written: list[int], ends: set[int], checks: dict[str, Any]) -> Answer:
    """What was written up to the first token that ends it."""
    place = next((n for n, token in enumerate(written) if token in ends), None)
    ids = written[:place]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Answer(ids, text, place is not None, instructions.kept(text, checks))


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer."""
    generation = getattr(model, "generation_config", None)
    asked = getattr(generation, "eos_token_id", None)
    asked = asked if isinstance(asked, list) else [asked]
    return {token for token in (*asked, tokenizer.eos_token_id) if token is not None}


def _by_transformers(model: Any, ids: list[list[int]], ends: set[int]) -> list[list[int]]:
    """Greedy continuations, several prompts at a time, padded in front."""
    found: list[list[int]] = []
    pad = min(ends, default=0)
    parts = [ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE)]
    for part in track(parts, "answering"):
        length = max(map(len, part))
        padded = torch.tensor([[pad] * (length - len(one)) + one for one in part], device=model.device)
        seen = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in part], device=model.device)
        written = model.generate(
            padded,
            attention_mask=seen,
            do_sample=False,
            max_new_tokens=BUDGET,
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad,
        )
        found += written[:, length:].tolist()
    return found


def _by_engine(engine: Any, ids: list[list[int]], ends: set[int]) -> list[list[int]]:
    """The same of a file that llama.cpp runs."""
    found = []
    for one in track(ids, "answering"):
        engine.forget()
        written = [engine.read(one)]
        while len(written) < BUDGET and written[-1] not in ends:
            written.append(engine.read(written[-1:]))
        found.append(written)
    return found


def _by_endpoint(endpoint: Any, tokenizer: Any, ids: list[list[int]]) -> list[list[int]]:
    """The same of a server, whose words are tokenised again."""
    found = []
    for one in track(ids, "answering"):
        text, stopped = endpoint.complete(one, BUDGET)
        written = tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append([*written, END] if stopped else written)
    return found


def _where(model: Any) -> str:
    """Where answers were asked for, if elsewhere."""
    return f", {model.where}" if hasattr(model, "complete") else ""
