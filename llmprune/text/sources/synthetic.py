"""No text at all: tokens drawn by how frequent their ranks are, and if asked redrawn by the model.

A tokenizer numbers its tokens in the order in which it merged them, the most frequent first, so their ranks
follow Zipf's law in Mandelbrot's form. What the model's own embeddings, norms and blocks make of such tokens
is what every layer is then shown: each input lies on the ellipsoid that the norm before it allows. Random
directions on that ellipsoid lose far more (llmprune/README.md, Decisions).

Independent tokens lack what makes a text. So the model can redraw each from what it expects after those
before it, at all positions in one forward pass.

Letters used in shapes: V vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from llmprune.checkpoint.shards import save_atomically
from llmprune.text import cache, sampling
from llmprune.text.sources.base import Access, Amount, TextSource
from llmprune.text.windows import Windows

SHIFT = 2.7  # Mandelbrot's constant for words: the first few are less frequent than Zipf's law says
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Synthetic(TextSource):
    """A function of the tokenizer and the seed; with redraws, of the model too."""

    redraws: Annotated[int, Field(ge=0)] = 0
    """How often the model redraws the tokens, one forward pass each."""

    @property
    def forwards(self) -> int:
        """One for every redraw."""
        return self.redraws

    def windows(self, amount: Amount, access: Access) -> Windows:
        """By rank, then redrawn; what was redrawn is kept in the user's cache."""
        often = frequencies(access.tokenizer(), access.vocabulary)
        generator = torch.Generator().manual_seed(amount.seed)
        size = amount.samples * amount.length
        tokens = torch.multinomial(often, size, replacement=True, generator=generator)
        drawn = Windows(tokens.reshape(amount.samples, amount.length), self.dataset, amount.seed)
        return self._redrawn(drawn, amount.seed, access) if self.redraws else drawn

    def _redrawn(self, drawn: Windows, seed: int, access: Access) -> Windows:
        how = {**drawn.record(), "redraws": self.redraws, "batch": access.batch}
        folder = cache.folder("synthetic", how, access.identity())
        file = folder / "tokens.safetensors" if folder else None
        if file and file.is_file():
            return Windows(load_file(file)["tokens"], self.dataset, seed)
        tokens = drawn.tokens
        for _ in range(self.redraws):
            tokens = sampling.redrawn(access.store(), tokens, access.batch, seed)
        if file:
            save_atomically({"tokens": tokens}, file)
        return Windows(tokens, self.dataset, seed)


def frequencies(tokenizer: Any, vocabulary: int) -> Tensor:
    """float64 [V], 1 / (rank + SHIFT) for every merged token, 0 for special tokens and single bytes.

    Args:
        tokenizer: of the model.
        vocabulary: how many ids the model knows.
    """
    pieces = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), vocabulary)))
    special = set(tokenizer.all_special_ids)
    merged = [
        number
        for number, piece in enumerate(pieces)
        if piece and len(piece) > 1 and number not in special and not BYTE.fullmatch(piece)
    ]
    ranked = torch.tensor(merged or [*range(len(pieces))])
    often = torch.zeros(vocabulary, dtype=torch.float64)
    often[ranked] = 1 / (torch.arange(1, len(ranked) + 1, dtype=torch.float64) + SHIFT)
    return often
