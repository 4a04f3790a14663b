"""Compute something once: what it gave is in a folder, from which an interrupted run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmprune import ranks
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
        known = ranks.from_first(lambda: file.read_text() if file.is_file() else None)
        if known is None:
            known = found = json.dumps(compute())
            ranks.from_first(lambda: write_atomically({file: found}))
        return json.loads(known)
