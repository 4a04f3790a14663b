"""How far a long job is: a bar on a terminal, plain lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
PLAIN_EVERY = 15.0  # seconds between two plain lines


def track(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield the items, showing how many are done; silently without a label."""
    if not label:
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _plain(items, label)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(items, description=label)


def _plain(items: Sequence[T], label: str) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last > PLAIN_EVERY:
            last = now
            say(f"{label}: {done}/{len(items)}, {now - start:.0f} s")
        yield item
    say(f"{label}: {len(items)}/{len(items)}, {time.monotonic() - start:.0f} s")


def say(line: str) -> None:
    """One line of news."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints
