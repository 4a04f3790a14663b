"""Instructions that a program can check, in the manner of IFEval (Zhou et al., 2023, arXiv:2311.07911)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Check = Callable[[str, Any], bool]


def kept(answer: str, checks: dict[str, Any]) -> float:
    """The share of its instructions that an answer keeps; an empty answer keeps none.

    Args:
        answer: text.
        checks: by name, as in `CHECKS`, what each wants.
    """
    answer = answer.strip()
    return sum(bool(answer) and CHECKS[name](answer, wanted) for name, wanted in checks.items()) / len(checks)


def _lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.splitlines() if line.strip()]


def _sentences(answer: str) -> int:
    return len([part for part in re.split(r"[.!?]+(?:\s+|$)", answer) if part.strip()])


def _has(answer: str, words: list[str]) -> bool:
    return all(word.lower() in answer.lower() for word in words)


def _lacks(answer: str, words: list[str]) -> bool:
    return not any(word.lower() in answer.lower() for word in words)


def _is_json(answer: str, keys: list[str]) -> bool:
    """Valid JSON, with these keys where there are any; a fence around it is no fault."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return False
    return all(key in found for key in keys) if isinstance(found, dict) else not keys


CHECKS: dict[str, Check] = {
    "lines": lambda answer, count: len(_lines(answer)) == count,
    "sentences": lambda answer, count: _sentences(answer) == count,
    "bullets": lambda answer, count: [line[0] in "-*" for line in _lines(answer)] == [True] * count,
    "numbered": lambda answer, count: (
        [bool(re.match(rf"{n}[.)]", line)) for n, line in enumerate(_lines(answer), 1)] == [True] * count
    ),
    "at_most": lambda answer, words: len(answer.split()) <= words,
    "at_least": lambda answer, words: len(answer.split()) >= words,
    "contains": _has,
    "excludes": _lacks,
    "begins": lambda answer, words: answer.lower().startswith(words.lower()),
    "ends": lambda answer, words: answer.lower().rstrip(".").endswith(words.lower()),
    "lower": lambda answer, _: answer == answer.lower(),
    "upper": lambda answer, _: answer == answer.upper(),
    "quoted": lambda answer, _: len(answer) > 1 and answer[0] == answer[-1] == '"',
    "commas": lambda answer, count: answer.count(",") == count,
    "json": _is_json,
}
