"""Random tokens instead of text: drawn by the frequency of their rank, optionally redrawn by the model.

A tokenizer numbers its tokens in the order of its merges, the most frequent first, so their frequencies
follow Zipf's law in Mandelbrot's form. The model's embeddings, norms and blocks turn such tokens into
realistic layer inputs; random vectors in their place prune much worse (llmprune/README.md, Decisions).

Independent tokens have no context. A redraw replaces each token by a sample of the model, given the tokens
before it, at all positions in one forward pass.

Letters used in shapes: V vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmprune.checkpoint.shards import save_atomically
from llmprune.text import cache, sampling
from llmprune.text.sources.base import Access, Amount, TextSource
from llmprune.text.windows import Windows

SHIFT = 2.7  # Mandelbrot's constant for words: the first few ranks are rarer than Zipf's law says
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Synthetic(TextSource):
    """Depends on the tokenizer and the seed only; with redraws, on the model too."""

    redraws: Annotated[int, Field(ge=0)] = 0
    """How often the model redraws all tokens; each redraw takes one forward pass."""

    @property
    def forward_passes(self) -> int:
        """One for each redraw."""
        return self.redraws

    def windows(self, amount: Amount, access: Access) -> Windows:
        """Draw tokens by rank, then redraw them; redrawn tokens are stored in the user's cache."""
        often = frequencies(access.tokenizer(), access.vocabulary)
        generator = torch.Generator().manual_seed(amount.seed)
        size = amount.samples * amount.length
        tokens = torch.multinomial(often, size, replacement=True, generator=generator)
        drawn = Windows(tokens.reshape(amount.samples, amount.length), self.dataset, amount.seed)
        return self._redrawn(drawn, amount, access) if self.redraws else drawn

    def _redrawn(self, drawn: Windows, amount: Amount, access: Access) -> Windows:
        # The batch is part of the cache key: it decides how sums are rounded, and so which tokens win.
        options = {**drawn.record(), "redraws": self.redraws, "batch": access.batch}
        begun = {"bos": amount.bos} if amount.bos else {}  # absent without, so that earlier texts are found
        folder = cache.folder("synthetic", {**options, **begun}, access.cache_key())
        file = folder / "tokens.safetensors" if folder else None
        if file and file.is_file():
            return replace(drawn, tokens=load_file(file)["tokens"])
        tokens = drawn.behind(amount.bos).tokens
        kept = len(amount.bos) or 1  # without BOS, nothing precedes the first token to redraw it from
        for _ in range(self.redraws):
            tokens = sampling.redraw(access.store(), tokens, access.batch, amount.seed, kept)
        tokens = tokens[:, len(amount.bos) :].contiguous()
        if file:
            save_atomically({"tokens": tokens}, file)
        return replace(drawn, tokens=tokens)


def frequencies(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor:
    """Return float64 [V]: 1 / (rank + SHIFT) for every merged token, 0 for special tokens and single bytes.

    Args:
        tokenizer: the tokenizer of the model.
        vocabulary: number of ids of the model.
    """
    # A vocabulary may be padded beyond the tokenizer, and a tokenizer may have more ids than the model.
    pieces = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), vocabulary)))
    special = set(tokenizer.all_special_ids)
    merged = [
        number
        for number, piece in enumerate(pieces)
        if piece and len(piece) > 1 and number not in special and not BYTE.fullmatch(piece)
    ]
    ranked = torch.tensor(merged or [*range(len(pieces))])  # a byte tokenizer has no merges: use all ids
    often = torch.zeros(vocabulary, dtype=torch.float64)
    often[ranked] = 1 / (torch.arange(1, len(ranked) + 1, dtype=torch.float64) + SHIFT)
    return often
