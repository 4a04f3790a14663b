"""Text in, token windows [N, L] out: a function of the text, the tokenizer and the seed only."""

from __future__ import annotations

import glob
import hashlib
import queue
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from llmprune.errors import JobError, RequestError, first_line
from llmprune.paths import existing
from llmprune.report import CalibrationRecord
from llmprune.text.tokenizing import tokenize

Half = Literal["calibration", "evaluation"]
TIMEOUT = 60.0  # seconds without a document after which a data set counts as out of reach
CHARACTERS = 16  # read per token needed: enough for random windows, and a web crawl is not read to its end
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
PLAIN = (".txt", ".md")
TEXTLESS = ("self", "synthetic")  # made from the model and its tokenizer
# Pinned, so that the same name means the same text on every machine.
KNOWN: dict[str, dict[str, Any]] = {
    "wikitext2": {
        "path": "Salesforce/wikitext",
        "name": "wikitext-2-raw-v1",
        "revision": "b08601e04326c79dfdd32d625aee71d232d685c3",
    },
    "c4": {"path": "allenai/c4", "revision": "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"},
}
SPLITS: dict[Half, str] = {"calibration": "train", "evaluation": "test"}
C4_FILES: dict[Half, str] = {
    "calibration": "en/c4-train.00000-of-01024.json.gz",
    "evaluation": "en/c4-validation.00000-of-00008.json.gz",
}


class Calibration(BaseModel):
    """Which text calibrates, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str = "builtin"
    """`builtin` (Python's own reference manual), `wikitext2`, `c4`, a file, a data set on the Hub; or no text
    at all: `self` (the model writes it) or `synthetic` (tokens drawn by their rank)."""
    samples: int = Field(128, ge=1)
    """Windows."""
    length: int | None = Field(None, ge=2)
    """Tokens per window; 2048, or the model's context where that is shorter."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Places the windows."""
    text_column: str = "text"
    """The column of a table that holds the text."""
    subset: str | None = None
    """Which configuration of a data set on the Hub."""
    split: str = "train"
    """Which split of a data set on the Hub."""
    temperature: float = Field(1.0, gt=0)
    """Of the text that the model writes itself."""
    redraws: int = Field(0, ge=0)
    """How often the model draws `synthetic` tokens anew, a forward pass each; 0 unless the method says."""


@dataclass(frozen=True)
class Windows:
    """Calibration tokens [N, L], and where they come from."""

    tokens: Tensor
    dataset: str
    seed: int | None

    def record(self) -> CalibrationRecord:
        """What the report says of them."""
        samples, length = self.tokens.shape
        return {
            "dataset": self.dataset,
            "samples": samples,
            "length": length,
            "tokens": samples * length,
            "seed": self.seed,
            "sha256": hashlib.sha256(self.tokens.to(torch.int64).numpy().tobytes()).hexdigest(),
        }


def windows(asked: Calibration, length: int, tokenizer: Any) -> Windows:
    """Random windows of the text, without special tokens.

    Raises:
        RequestError: there is no such text, or it is shorter than one window.
        JobError: the data set is out of reach.
    """
    limit = characters_for(asked.samples, length)
    text = read_text(asked.dataset, "calibration", asked, limit)
    ids = tokenize(text, tokenizer)
    if len(ids) < length:
        raise RequestError(
            "calibration",
            f"{asked.dataset} has {len(ids)} tokens, fewer than one window of {length}; "
            "give more text or a smaller --length",
        )
    generator = torch.Generator().manual_seed(asked.seed)
    starts = torch.randint(0, len(ids) - length + 1, (asked.samples,), generator=generator)
    return Windows(torch.stack([ids[s : s + length] for s in starts.tolist()]), asked.dataset, asked.seed)


def characters_for(samples: int, length: int) -> int:
    """How much text to read for so many windows of `length` tokens."""
    return max(CHARACTERS * samples, 128) * length


def read_text(
    dataset: str, half: Half, asked: Calibration, limit: int | None = None, field: str = "calibration"
) -> str:
    """A text as a whole; arguments and errors are those of `read`."""
    return "".join(read(dataset, half, asked, limit, field))


def read(
    dataset: str, half: Half, asked: Calibration, limit: int | None = None, field: str = "calibration"
) -> Iterator[str]:
    """The documents of a data set, joined by blank lines, part by part.

    Args:
        dataset: as in `Calibration`.
        half: data sets that we know have one text to calibrate on and another to evaluate on.
        asked: says which column, subset and split.
        limit: stop after so many characters.
        field: what a wrong name is reported as.

    Raises:
        RequestError: there is no such text, or nothing in it.
    """
    leading, parts = "", _parts(dataset, half, asked, limit, field)
    for part in parts:
        leading += part
        if part.strip():
            yield leading
            yield from parts
            return
    raise RequestError(field, f"{dataset} holds no text")


def _parts(dataset: str, half: Half, asked: Calibration, limit: int | None, field: str) -> Iterator[str]:
    path = existing(dataset) or Path(dataset)
    between = "\n\n"
    if dataset == "builtin":
        documents: Iterable[str] = _reference_manual(half)
    elif dataset in KNOWN:
        documents = _from_hub(_known(dataset, half), "text", dataset)
    elif path.suffix in PLAIN and path.is_file():
        documents, between = _megabytes(path, field), ""  # of one document
    elif path.suffix in FORMATS and path.is_file():
        table = {"path": FORMATS[path.suffix], "data_files": glob.escape(str(path)), "split": "train"}
        documents = _from_file(table, asked.text_column, dataset, field)
    elif path.suffix in (*PLAIN, *FORMATS) and not path.exists():
        raise RequestError(field, f"there is no file {dataset}; give one that is there")
    elif existing(dataset) or not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):
        allowed = ", ".join((*PLAIN, *FORMATS))
        textless = TEXTLESS if half == "calibration" else ()
        names = ", ".join(("builtin", *KNOWN, *textless))
        raise RequestError(field, f"{dataset!r} is not {names}, a file ({allowed}) or a Hub id")
    else:
        where = {"path": dataset, "name": asked.subset, "split": asked.split}
        documents = _from_hub(where, asked.text_column, dataset)
    for number, document in enumerate(_up_to(documents, limit)):
        yield between + document if number else document


def _known(dataset: str, half: Half) -> dict[str, Any]:
    if dataset == "c4":
        return {**KNOWN[dataset], "data_files": {"train": C4_FILES[half]}, "split": "train"}
    return {**KNOWN[dataset], "split": SPLITS[half]}


def _reference_manual(half: Half) -> list[str]:
    """Every other section of the language reference that `help()` shows, which every Python ships.

    Sections quote one another; a paragraph counts where it stands first, so the halves share none.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    sections = []
    for name in sorted(topics):
        own = [part for part in topics[name].split("\n\n") if part.strip() not in seen]
        seen |= {part.strip() for part in own}
        sections.append("\n\n".join(own))
    return sections[0 if half == "calibration" else 1 :: 2]


def _megabytes(path: Path, field: str) -> Iterator[str]:
    """A plain file, a MB at a time."""
    try:
        with path.open(encoding="utf-8") as file:
            while part := file.read(1 << 20):
                yield part
    except UnicodeDecodeError as error:
        raise RequestError(field, f"{path} is not UTF-8 text ({error.reason}); convert it") from error
    except OSError as error:
        raise RequestError(field, f"{path} cannot be read: {error.strerror}") from error


def _up_to(documents: Iterable[str], limit: int | None) -> Iterator[str]:
    left = limit
    for document in documents:
        yield document if left is None else document[:left]
        if left is not None:
            left -= len(document)
            if left <= 0:
                return


def _rows(where: dict[str, Any], column: str, dataset: str) -> Iterator[str]:
    """One column of a table, row by row."""
    import datasets

    for row in datasets.load_dataset(**where, streaming=True):
        if not isinstance(row.get(column), str):
            found = ", ".join(key for key, value in row.items() if isinstance(value, str)) or "none"
            raise RequestError(
                "text_column",
                f"{dataset} has no text column {column!r} (text columns: {found}); set --text-column",
            )
        yield row[column]


def _from_file(where: dict[str, Any], column: str, dataset: str, field: str) -> Iterator[str]:
    """Like `_rows`; a file that is broken is the user's to mend."""
    if not Path(dataset).expanduser().stat().st_size:
        return
    try:
        yield from _rows(where, column, dataset)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            field, f"{dataset} cannot be read as a table ({first_line(error)}); is it whole?"
        ) from error


def _from_hub(where: dict[str, Any], column: str, dataset: str) -> Iterator[str]:
    """Like `_rows`, giving up when no document arrives for a while."""
    arrived: queue.Queue[Any] = queue.Queue(maxsize=64)
    end = object()

    def fetch() -> None:
        try:
            for text in _rows(where, column, dataset):
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


def size_of(tokens: Tensor) -> dict[str, int]:
    """How much text the caller's windows [N, L] are, in a recipe's words.

    Raises:
        RequestError: they are no windows.
    """
    if tokens.ndim != 2 or not tokens.numel():
        raise RequestError("tokens", f"windows [N, L] are needed, and the shape is {list(tokens.shape)}")
    return {"samples": tokens.shape[0], "length": tokens.shape[1]}


def batched(tokens: Tensor, size: int) -> list[Tensor]:
    """Windows [N, L] as batches of at most `size` windows."""
    return list(tokens.split(size))
