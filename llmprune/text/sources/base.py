"""What a text source is: a data set's name and options in, windows of tokens [N, L] out.

Documents are read from somewhere and tokenized; any other source makes tokens as it likes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict
from transformers import PreTrainedModel

from llmprune.checkpoint.store import Store
from llmprune.errors import RequestError
from llmprune.plugins import OPTIONS
from llmprune.text.tokenizing import tokenize
from llmprune.text.windows import Windows

Half = Literal["calibration", "evaluation"]
OPTION: dict[Half, str] = {"calibration": "calibration", "evaluation": "perplexity"}  # that names a text
CHARACTERS = 16  # read per token needed: enough for random windows, and a web crawl is not read to its end


@dataclass(frozen=True)
class Amount:
    """How many windows, of how many tokens each, and from which seed."""

    samples: int
    length: int
    seed: int


@dataclass(frozen=True)
class Access:
    """What a run lends a text source; each is opened or computed when it is called."""

    tokenizer: Callable[[], Any]
    """The model's."""

    whole_model: Callable[[], PreTrainedModel]
    """The dense model, all of it in memory; a JobError where it does not fit."""

    store: Callable[[], Store]
    """The dense model, one block resident at a time."""

    identity: Callable[[], dict[str, Any] | None]
    """The cache key of whatever the model generates; None if the caller could change the model."""

    batch: int
    """Windows that go through a block together."""

    vocabulary: int
    """Ids that the model knows, 0 to this."""


@dataclass(frozen=True)
class TextSource:
    """Override `windows`. The fields of a subclass are its options in a recipe's `calibration`."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS
    needs_whole_model: ClassVar[bool] = False
    """Whether the dense model must fit into memory as a whole."""

    dataset: str
    """The name, path or id that the recipe asks for it by."""

    @classmethod
    def answers_to(cls, dataset: str) -> bool:
        """Whether a recipe's `dataset` means this source: the name of its file, unless overridden."""
        return dataset == cls.__module__.rsplit(".", 1)[-1]

    @classmethod
    def option_names(cls) -> list[str]:
        """What can be asked of it besides its `dataset`."""
        return [field.name for field in dataclasses.fields(cls) if field.name != "dataset"]

    @property
    def forwards(self) -> int:
        """How many forward passes over the windows it takes to draw them."""
        return 0

    def windows(self, amount: Amount, access: Access) -> Windows:
        """The windows, a function of the options, the amount and the model only.

        Raises:
            RequestError: there is no such text, or not enough of it.
            JobError: the text is out of reach, or the model does not fit.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Documents(TextSource):
    """Override `documents`. Texts calibrate and evaluate; windows are drawn from them at random."""

    between: ClassVar[str] = "\n\n"
    """What stands between two documents."""

    evaluation_split: ClassVar[str] = "test"
    """What a report calls the half that evaluates."""

    def documents(self, half: Half) -> Iterable[str]:
        """The texts, read as they are asked for; the same for both halves where there is one text only."""
        raise NotImplementedError

    def read(self, half: Half, limit: int | None = None) -> Iterator[str]:
        """The documents, joined, part by part, up to so many characters.

        Raises:
            RequestError: there is no such text, or nothing in it.
            JobError: it is out of reach.
        """
        leading, parts = "", self._parts(half, limit)
        for part in parts:
            leading += part
            if part.strip():
                yield leading
                yield from parts
                return
        raise RequestError(OPTION[half], f"{self.dataset} holds no text")

    def text(self, half: Half, limit: int | None = None) -> str:
        """The same as a whole."""
        return "".join(self.read(half, limit))

    def _parts(self, half: Half, limit: int | None) -> Iterator[str]:
        for number, document in enumerate(_up_to(self.documents(half), limit)):
            yield self.between + document if number else document

    def windows(self, amount: Amount, access: Access) -> Windows:
        """Random windows of the text, without special tokens."""
        tokenizer = access.tokenizer()
        length = amount.length
        ids = tokenize(self.text("calibration", characters_for(amount.samples, length)), tokenizer)
        if len(ids) < length:
            raise RequestError(
                "calibration",
                f"{self.dataset} has {len(ids)} tokens, fewer than one window of {length}; "
                "give more text or a smaller --length",
            )
        generator = torch.Generator().manual_seed(amount.seed)
        starts = torch.randint(0, len(ids) - length + 1, (amount.samples,), generator=generator)
        tokens = torch.stack([ids[start : start + length] for start in starts.tolist()])
        return Windows(tokens, self.dataset, amount.seed)


def characters_for(samples: int, length: int) -> int:
    """How much text to read for so many windows of `length` tokens."""
    return max(CHARACTERS * samples, 128) * length


def _up_to(documents: Iterable[str], limit: int | None) -> Iterator[str]:
    left = limit
    for document in documents:
        yield document if left is None else document[:left]
        if left is not None:
            left -= len(document)
            if left <= 0:
                return
