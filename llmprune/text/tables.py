"""One column of a table, row by row, texts or conversations: from a file, or streamed from the Hub."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping

from llmprune.errors import JobError, RequestError, first_line
from llmprune.text import chat
from llmprune.text.chat import Conversation

USUAL = ("text", "prompt")  # columns that are read unless another is named
TIMEOUT = 60.0  # seconds without a document after which a data set counts as out of reach


def rows(load_args: Mapping[str, object], column: str, dataset: str) -> Iterator[str | Conversation]:
    """Yield the texts or conversations of one column; of `messages`, where a usual one is not there.

    Args:
        load_args: keyword arguments of `datasets.load_dataset`.
        column: name of the column that holds the text.
        dataset: name of the data set in error messages.

    Raises:
        RequestError: the column holds neither.
    """
    import datasets

    for row in datasets.load_dataset(**load_args, streaming=True):
        value = row.get(column, row.get(chat.COLUMN) if column in USUAL else None)
        if not isinstance(value, str) and not chat.is_conversation(value):
            found = ", ".join(key for key, value in row.items() if isinstance(value, str)) or "none"
            raise RequestError(
                "text_column",
                f"{dataset} has no text column {column!r} (text columns: {found}); set --text-column",
            )
        yield value


def stream(load_args: Mapping[str, object], column: str, dataset: str) -> Iterator[str | Conversation]:
    """Yield what `rows` does, of a Hub data set.

    Raises:
        JobError: the data set is out of reach, or sends nothing for `TIMEOUT` seconds.
    """
    # A thread, because a stalled download inside `datasets` cannot be interrupted from this one.
    # The queue is bounded, so a fast download does not fill the memory.
    arrived: queue.Queue[str | Conversation | Exception | None] = queue.Queue(maxsize=64)

    def fetch() -> None:
        try:
            for text in rows(load_args, column, dataset):
                arrived.put(text)
            arrived.put(None)
        except Exception as error:  # raised in the reader's thread
            arrived.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    while True:
        try:
            item = arrived.get(timeout=TIMEOUT)
        except queue.Empty:
            item = TimeoutError(f"nothing arrived for {TIMEOUT:.0f} s")
        if item is None:
            return
        if isinstance(item, RequestError):
            raise item
        if isinstance(item, Exception):
            raise JobError(
                f"the data set {dataset!r} is out of reach ({first_line(item)}); "
                "use `builtin`, which needs no download, or a file"
            )
        yield item
