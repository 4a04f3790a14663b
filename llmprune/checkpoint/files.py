"""Small files that are whole, whatever happens while they are written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from llmprune.checkpoint.shards import sync_folder
from llmprune.errors import JobError


def write_atomically(texts: dict[Path, str]) -> None:
    """Write files anew: all of them, or none if the disk is full or a folder cannot be written.

    Raises:
        JobError: none was written, and what was there before stays.
    """
    parts = {file: file.with_name(f".{file.name}.part") for file in texts}
    try:
        for file, part in parts.items():
            _write_through(part, texts[file])
        for file, part in parts.items():
            part.replace(file)
            sync_folder(file.parent)
    except OSError as error:
        raise JobError(
            f"cannot write {', '.join(map(str, texts))}: {error.strerror}; nothing was changed, so mend that "
            "and ask again"
        ) from error
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()


def _write_through(file: Path, text: str) -> None:
    """Write a file, and wait until the disk has it."""
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
