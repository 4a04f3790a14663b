"""Parts that are added from outside: each is a file of a package made for one test, and nothing else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmprune.checkpoint import reload
from tests.reloading import check_here

PACKAGE = "added_by_a_test"
Add = Callable[[str, str], str]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Call it with a file's name and its source for the dotted name under which a recipe asks for it."""
    folder = tmp_path / "elsewhere" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(reload, "check", check_here)

    def write(name: str, source: str) -> str:
        (folder / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return f"{PACKAGE}.{name}"

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]
