"""What the Hub's client raises when the Hub is out of reach."""

from __future__ import annotations

import re

from huggingface_hub import errors as hub_errors

HTTP_ERROR: type[Exception] = getattr(hub_errors, "HTTPError", OSError)  # of the client's own HTTP library
UNREACHABLE = (OSError, HTTP_ERROR)
STORAGE = re.compile(
    r"^(?:Task|Data processing) error: |\bCAS (?:client|service) error\b|^Error while uploading ",
    re.IGNORECASE,
)


def by_storage(error: Exception) -> bool:
    """Whether the client's storage for large files raised this; its words tell it from a bug."""
    return isinstance(error, RuntimeError) and STORAGE.search(str(error)) is not None
