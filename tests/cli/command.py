"""A command line of llmprune, run in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmprune import cli

PROGRAM = Path(sys.executable).with_name("llmprune")
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


def run(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    around = {**os.environ, **environment}
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=60, env=around)
