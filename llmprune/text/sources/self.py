"""Text that the model generates itself, token by token: no data set, where the model fits into memory.

A language model is a distribution over texts, and draws from it resemble what it was trained on (Williams &
Aletras, 2024, arXiv:2410.17170). It is kept in the user's cache batch by batch, so that a run that was cut
off resumes where it was, and more windows of the same text cost only what is new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from llmprune.checkpoint.shards import save_atomically
from llmprune.progress import track
from llmprune.text import cache, sampling
from llmprune.text.sources.base import Access, Amount, TextSource
from llmprune.text.windows import Windows

TOKENS = 8192  # generated at a time, and
MOST = 128  # windows: both are part of what a seed means


@dataclass(frozen=True)
class SelfGenerated(TextSource):
    """What the model continues its first token with, past the ends of documents."""

    needs_whole_model: ClassVar = True

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the distribution that every token is drawn from."""

    def windows(self, amount: Amount, access: Access) -> Windows:
        """The windows in the order of their batches; the model is opened if any batch is missing."""
        length, size = amount.length, batch_size(amount.length)
        how = {"length": length, "seed": amount.seed, "temperature": self.temperature, "batch": size}
        folder = cache.folder("self", how, access.identity())
        batches: list[Tensor] = []
        model: PreTrainedModel | None = None
        for number in track(range(-(-amount.samples // size)), "writing calibration text"):
            file = folder / f"{number:05d}.safetensors" if folder else None
            if file and file.is_file():
                batches.append(load_file(file)["tokens"])
                continue
            model = model or access.whole_model()
            seed = (amount.seed << 20) + number
            batches.append(sampling.generated(model, size, length, self.temperature, seed))
            if file:
                save_atomically({"tokens": batches[-1]}, file)
        return Windows(torch.cat(batches)[: amount.samples], self.dataset, amount.seed)


def batch_size(length: int) -> int:
    """Windows generated at a time: the shorter, the more."""
    return max(1, min(MOST, TOKENS // length))
