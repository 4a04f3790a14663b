"""Token windows without any text: ids drawn by how often tokens of their rank occur, and nothing else.

A tokenizer numbers its tokens in the order in which it merged them, the most frequent first, so their ranks
follow Zipf's law in Mandelbrot's form. What the model's own embeddings, norms and blocks make of such tokens
is what every layer is then shown: each input lies on the ellipsoid that the norm before it allows. Random
directions on that ellipsoid lose far more (llmprune/README.md, Decisions).

Letters used in shapes: N windows, L tokens, V vocabulary.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from llmprune.calibration import Calibration, Windows

SHIFT = 2.7  # Mandelbrot's constant for words: the first few are less frequent than Zipf's law says
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def windows(asked: Calibration, length: int, tokenizer: Any, vocabulary: int) -> Windows:
    """Independent draws of tokens [N, L], a function of the tokenizer and the seed."""
    often = frequencies(tokenizer, vocabulary)
    generator = torch.Generator().manual_seed(asked.seed)
    drawn = torch.multinomial(often, asked.samples * length, replacement=True, generator=generator)
    return Windows(drawn.reshape(asked.samples, length), "synthetic", asked.seed)


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
