"""Paths as users type them."""

from pathlib import Path


def existing(name: str) -> Path | None:
    """What has this name, `~` expanded; None if nothing has, or nothing could have."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None
