"""The user's cache of generated text: a folder's name is the hash of everything the text depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from llmprune.checkpoint.gguf import cache_folder


def folder(kind: str, options: Mapping[str, object], key: Mapping[str, object] | None) -> Path | None:
    """Return the folder of one generated text, made if it does not exist; None if it must not be cached.

    Args:
        kind: name of the text source; its texts share a parent folder.
        options: how the text is generated.
        key: cache key of the model and its hardware; None if the caller could change the model.
    """
    if key is None:
        return None
    name = hashlib.sha256(json.dumps({**options, **key}, sort_keys=True).encode()).hexdigest()[:32]
    found = cache_folder() / kind / name
    found.mkdir(parents=True, exist_ok=True)
    return found
