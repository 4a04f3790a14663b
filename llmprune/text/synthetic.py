"""Token windows without any text: ids drawn by how often their ranks occur, and if asked anew by the model.

A tokenizer numbers its tokens in the order in which it merged them, the most frequent first, so their ranks
follow Zipf's law in Mandelbrot's form. What the model's own embeddings, norms and blocks make of such tokens
is what every layer is then shown: each input lies on the ellipsoid that the norm before it allows. Random
directions on that ellipsoid lose far more (llmprune/README.md, Decisions).

Independent tokens lack what makes a text. So the model can draw each anew from what it expects after those
before it, at all positions in one forward. After k such redraws the first k tokens of a window are what the
model would have written one by one, and the noise of every position stays the same from one redraw to the
next, so that tokens settle well before that (Jacobi iteration; Song et al., 2021, arXiv:2002.03629).

Letters used in shapes: N windows, L tokens, B windows of one batch, R rows looked at together, T = L - 1,
D hidden size, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmprune.checkpoint.shards import save_atomically
from llmprune.checkpoint.store import Store
from llmprune.tensors import ops
from llmprune.text import sampling
from llmprune.text.calibration import Calibration, Windows, batched
from llmprune.walk.walk import Walk

SHIFT = 2.7  # Mandelbrot's constant for words: the first few are less frequent than Zipf's law says
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def windows(
    asked: Calibration,
    length: int,
    often: Tensor,
    open_store: Callable[[], Store],
    batch: int,
    identity: dict[str, Any] | None,
) -> Windows:
    """Windows of tokens, a function of the model, its tokenizer and the seed.

    Args:
        asked: how many windows, from which seed, and how often they are drawn anew.
        length: tokens per window.
        often: of every token [V], from `frequencies`.
        open_store: called if there is anything to draw anew; one block of it is resident at a time.
        batch: windows that go through a block together.
        identity: what the redraws depend on besides the above; None to keep nothing.
    """
    generator = torch.Generator().manual_seed(asked.seed)
    tokens = torch.multinomial(often, asked.samples * length, replacement=True, generator=generator)
    drawn = Windows(tokens.reshape(asked.samples, length), "synthetic", asked.seed)
    if not asked.redraws:
        return drawn
    how = {**drawn.record(), "redraws": asked.redraws, "batch": batch}
    folder = sampling.kept_in("synthetic", how | identity) if identity is not None else None
    file = folder / "tokens.safetensors" if folder else None
    if file and file.is_file():
        return Windows(load_file(file)["tokens"], "synthetic", asked.seed)
    tokens = drawn.tokens
    for _ in range(asked.redraws):
        tokens = redrawn(open_store(), tokens, batch, asked.seed)
    if file:
        save_atomically({"tokens": tokens}, file)
    return Windows(tokens, "synthetic", asked.seed)


def redrawn(store: Store, tokens: Tensor, batch: int, seed: int) -> Tensor:
    """Every token [N, L] but a window's first, drawn from what the model expects after those before it.

    Costs one forward. The same seed means the same noise at the same place, whatever the tokens are.
    """
    anatomy = store.anatomy
    walk = Walk(store, batched(tokens, batch), tokens[:1, :1])
    left: list[Tensor] = []
    for stage in walk.stages("drawing tokens"):
        if stage.index == len(anatomy.blocks) - 1:
            left = stage.run()
    after = torch.empty_like(tokens[:, 1:])  # filled in: small tensors between logits would break up the heap
    rows = max(1, ops.CHUNK // anatomy.vocabulary)  # logits of the whole vocabulary, for a few rows at a time
    with store.head():
        device = walk.logits(left[0][:1, :1]).device
        generator = torch.Generator(device).manual_seed(seed)
        for drawn, ends in zip(after.split(batch), left, strict=True):
            for ids, part in _in_rows(rows, drawn, ends[:, :-1]):
                ids.copy_(_drawn(walk.logits(part[:, None])[:, 0].float(), generator))
    return torch.cat([tokens[:, :1], after], 1)


def _in_rows(rows: int, ids: Tensor, ends: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids [B, T] and hidden states [B, T, D], a few rows of all at a time; the ids are views."""
    return zip(ids.view(-1).split(rows), ends.flatten(0, 1).split(rows), strict=True)


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token per row [R, V] with its probability: the largest logit once Gumbel noise is added.

    With the same noise, rows that differ little give mostly the same token.
    """
    noise = torch.rand(logits.shape, generator=generator, device=logits.device).log_().neg_().log_()
    return (logits - noise).argmax(-1)


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
