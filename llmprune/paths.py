"""Paths as users type them."""

from pathlib import Path

UNFINISHED = ".unfinished"  # the hidden folder that an output is written in


def existing(name: str) -> Path | None:
    """Return the path with `~` expanded if it exists; None if it does not, or is no valid path."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None
