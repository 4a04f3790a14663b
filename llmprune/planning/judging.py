"""Judge pruned folders by windows that neither calibrated nor evaluate, with one block in memory.

Letters used in shapes: L tokens of one window, R predictions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from llmprune.checkpoint import reader, source
from llmprune.checkpoint.opened import Opened
from llmprune.checkpoint.resources import Resources
from llmprune.errors import JobError
from llmprune.model.sites.base import sites_of
from llmprune.patterns.blocks import Blocks
from llmprune.tensors import ops
from llmprune.tensors.agreement import divergence
from llmprune.text.tokenizing import tokenize
from llmprune.walk.walk import Walk


class Worth(NamedTuple):
    """What a pruned model is worth on the held-out windows."""

    bits_per_byte: float
    kl: float | None
    """Mean KL(dense || pruned) in nats; None where the vocabulary was cut."""


class Judge:
    """Compares folders with the dense model on the same text.

    Args:
        dense: the dense model.
        tokenizer: its tokenizer.
        windows: token ids [N, L].
    """

    def __init__(self, dense: Opened, tokenizer: Any, windows: Tensor) -> None:
        self._where, self._trust = dense.resources, dense.trust_remote_code
        self._windows = list(windows)
        self._texts = [_said(tokenizer, ids) for ids in self._windows]
        self._dense = _Reading(dense, self._windows, tokenizer, "the dense model")

    @property
    def dense(self) -> float:
        """Bits per byte of the dense model."""
        return self._dense.bits_per_byte()

    def worth(self, folder: Path) -> Worth:
        """What the model in a finished folder is worth.

        Raises:
            JobError: its loss is no number.
        """
        model = opened(folder, self._where, trust=self._trust)
        tokenizer = model.tokenizer(None)
        cut = model.anatomy.vocabulary != self._dense.vocabulary
        windows = self._windows
        if cut:
            windows = [tokenize(text, tokenizer) for text in self._texts]
        reading = _Reading(model, windows, tokenizer, folder.parent.name)
        kl = None if cut else reading.divergence(self._dense)
        found = Worth(reading.bits_per_byte(), kl)
        if not math.isfinite(found.bits_per_byte):
            raise JobError(f"the model in {folder} gives losses that are no numbers; look at its report")
        return found


def opened(folder: Path, where: Resources, *, trust: bool) -> Opened:
    """A finished folder, none of its weights read."""
    found = source.find(str(folder), trust_remote_code=trust)
    return Opened(reader.blueprint(found, sites_of(Blocks())), found, where, trust)


class _Reading:
    """A model that has read some windows: the hidden states that leave its last block."""

    def __init__(self, model: Opened, windows: list[Tensor], tokenizer: Any, name: str) -> None:
        self.vocabulary = model.anatomy.vocabulary
        self._store = model.store
        self._windows = windows
        # decoded with its first token, which nothing predicts, as decoders drop a leading space
        said = [(_said(tokenizer, ids), _said(tokenizer, ids[:1])) for ids in windows]
        self._bytes = sum(len(text.encode()) - len(first.encode()) for text, first in said)
        self._walk = Walk(model.store, [ids[None] for ids in windows], model.probe())
        self._ends: list[Tensor] = []
        for stage in self._walk.stages(f"judging {name}"):
            self._ends = stage.outputs = stage.run()
        self._nats: float | None = None

    def predictions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield log-probabilities, float32 [R, V], and the tokens [R] that came, a few rows at a time."""
        rows = max(1, ops.CHUNK // self.vocabulary)
        with self._store.head():
            yield from self._by_rows(rows)

    def _by_rows(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        for ids, states in zip(self._windows, self._ends, strict=True):
            parts = zip(states[0, :-1].split(rows), ids[1:].split(rows), strict=True)
            for part, came in parts:
                logits = self._walk.logits(part[:, None])[:, 0].float()
                yield logits.log_softmax(-1), came.to(logits.device)

    def bits_per_byte(self) -> float:
        """Mean over the text that is predicted."""
        if self._nats is None:
            chosen = (said.gather(1, came[:, None]) for said, came in self.predictions())
            self._nats = -sum(float(one.double().sum()) for one in chosen)
        return self._nats / math.log(2) / max(self._bytes, 1)

    def divergence(self, dense: _Reading) -> float:
        """Mean KL(dense || this) in nats, over the same windows; the loss is summed up on the way."""
        total, nats, count = 0.0, 0.0, 0
        for (before, _), (after, came) in zip(dense.predictions(), self.predictions(), strict=True):
            total += divergence(before, after.to(before.device))
            nats -= float(after.gather(1, came[:, None]).double().sum())
            count += len(came)
        self._nats = nats
        return total / count


def _said(tokenizer: Any, ids: Tensor) -> str:
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text
