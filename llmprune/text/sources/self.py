"""Text that the model generates token by token; it needs no data set, but the whole model in memory.

Samples of a language model resemble its training text (Williams & Aletras, 2024, arXiv:2410.17170). The text
is stored in the user's cache batch by batch: an interrupted run resumes, and a run that needs more windows
generates only the missing ones.
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

# Both decide which windows share a batch, and so which text a seed stands for: do not tune them.
TOKENS = 8192  # generated at a time
MOST = 128  # windows generated at a time


@dataclass(frozen=True)
class SelfGenerated(TextSource):
    """Continuations of BOS, or of the model's first token where windows have none; no end token ends them."""

    needs_whole_model: ClassVar = True

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature."""

    def windows(self, amount: Amount, access: Access) -> Windows:
        """Return the windows in the order of their batches; load the model only if a batch is missing."""
        length, size = amount.length, batch_size(amount.length)
        options = {"length": length, "seed": amount.seed, "temperature": self.temperature, "batch": size}
        # Absent without BOS, so that what earlier versions cached is found.
        begun = {"bos": amount.bos} if amount.bos else {}
        folder = cache.folder("self", {**options, **begun}, access.cache_key())
        batches: list[Tensor] = []
        model: PreTrainedModel | None = None
        for number in track(range(-(-amount.samples // size)), "generating calibration text"):
            file = folder / f"{number:05d}.safetensors" if folder else None
            if file and file.is_file():
                batches.append(load_file(file)["tokens"])
                continue
            model = model or access.whole_model()
            seed = (amount.seed << 20) + number  # a batch does not depend on those before it
            batches.append(sampling.generate(model, size, length, self.temperature, seed, amount.bos))
            if file:
                save_atomically({"tokens": batches[-1]}, file)
        return Windows(torch.cat(batches)[: amount.samples], self.dataset, amount.seed)


def batch_size(length: int) -> int:
    """Return how many windows of `length` tokens to generate at a time."""
    return max(1, min(MOST, TOKENS // length))
