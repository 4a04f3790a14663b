"""Generated text in the user's cache: the name of a folder is the hash of all that the text depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llmprune.checkpoint.gguf import cache_folder


def folder(kind: str, options: dict[str, Any], identity: dict[str, Any] | None) -> Path | None:
    """The folder of one text; None if it must not be kept.

    Args:
        kind: of the text, the folder that holds all of them.
        options: how it is generated.
        identity: by which model, on which hardware; None if that could change unnoticed.
    """
    if identity is None:
        return None
    name = hashlib.sha256(json.dumps(options | identity, sort_keys=True).encode()).hexdigest()[:32]
    found = cache_folder() / kind / name
    found.mkdir(parents=True, exist_ok=True)
    return found
