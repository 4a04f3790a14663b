"""Show progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from llmprune import ranks

T = TypeVar("T")
PLAIN_EVERY = 15.0  # seconds between two plain lines


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, showing how many of them (or of `total`) are done; silently without a label."""
    if not label or not ranks.first():
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _plain(items, label, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(items, total, description=label)


def _plain(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0

    def report(now: float) -> None:
        of = "" if total is None else f"/{total}"
        say(f"{label}: {done}{of}, {now - start:.0f} s")

    for item in items:
        now = time.monotonic()
        if done and now - last > PLAIN_EVERY:
            last = now
            report(now)
        yield item
        done += 1
    report(time.monotonic())


def say(line: str) -> None:
    """Print one line, of all ranks' the first one's."""
    if ranks.first():
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints
