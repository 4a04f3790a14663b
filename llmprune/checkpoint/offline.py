"""What the Hub's client raises when the Hub is out of reach."""

from __future__ import annotations

from huggingface_hub import errors as hub_errors

HTTP_ERROR: type[Exception] = getattr(hub_errors, "HTTPError", OSError)  # of the client's own HTTP library
UNREACHABLE = (OSError, HTTP_ERROR, RuntimeError)  # the last is what its storage for large files raises
