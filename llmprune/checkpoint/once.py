"""Compute something once: what it gave is in a folder, from which an interrupted run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmprune.checkpoint.files import write_atomically


class Once:
    """A folder of results as JSON files.

    Args:
        folder: created if needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, or returned in an interrupted run, as JSON data.

        Raises:
            JobError: it cannot be written.
        """
        file = self._folder / f"{name}.json"
        if not file.is_file():
            write_atomically({file: json.dumps(compute())})
        return json.loads(file.read_text())
