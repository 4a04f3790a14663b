"""One column of a table, row by row: of a file, or streamed from the Hub."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from llmprune.errors import JobError, RequestError, first_line

TIMEOUT = 60.0  # seconds without a document after which a data set counts as out of reach


def rows(where: dict[str, Any], column: str, dataset: str) -> Iterator[str]:
    """The texts of one column.

    Args:
        where: arguments of `datasets.load_dataset`.
        column: that holds the text.
        dataset: what errors call it.

    Raises:
        RequestError: the column holds no text.
    """
    import datasets

    for row in datasets.load_dataset(**where, streaming=True):
        if not isinstance(row.get(column), str):
            found = ", ".join(key for key, value in row.items() if isinstance(value, str)) or "none"
            raise RequestError(
                "text_column",
                f"{dataset} has no text column {column!r} (text columns: {found}); set --text-column",
            )
        yield row[column]


def streamed(where: dict[str, Any], column: str, dataset: str) -> Iterator[str]:
    """Like `rows`, from the Hub.

    Raises:
        JobError: the data set is out of reach, or sends nothing for `TIMEOUT` seconds.
    """
    arrived: queue.Queue[Any] = queue.Queue(maxsize=64)
    end = object()

    def fetch() -> None:
        try:
            for text in rows(where, column, dataset):
                arrived.put(text)
            arrived.put(end)
        except Exception as error:  # handed to the reader, who is in another thread
            arrived.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    while True:
        try:
            item = arrived.get(timeout=TIMEOUT)
        except queue.Empty:
            item = TimeoutError(f"nothing arrived for {TIMEOUT:.0f} s")
        if item is end:
            return
        if isinstance(item, RequestError):
            raise item
        if isinstance(item, Exception):
            raise JobError(
                f"the data set {dataset!r} is out of reach ({first_line(item)}); "
                "use `builtin`, which needs no download, or a file"
            )
        yield item
