"""A command line of llmprune, run in this process."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from llmprune import cli

MODEL, OUT = "{model}", "{out}"
USUAL = ["--method", "wanda", "--samples", "2", "--length", "16"]


def main(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> Any:
    """The exit code of a command line, run in this process."""
    monkeypatch.setattr(sys, "argv", ["llmprune", *words])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return leaving.value.code


def filled(words: list[str], place: dict[str, str]) -> list[str]:
    return [word.format(**place) for word in words]
