"""Tokens that the model draws: one after another, or all positions of a window at once.

The second way takes one forward pass, whatever the length. Drawn k times, the first k tokens of a window are
what the model would have generated one by one; and the noise at every position stays the same from one pass
to the next, so that tokens settle well before that (Jacobi iteration; Song et al., 2021, arXiv:2002.03629).

Letters used in shapes: N windows, L tokens, B windows of one batch, R rows looked at together, T = L - 1,
D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from llmprune.checkpoint.store import Store
from llmprune.tensors import ops
from llmprune.text.windows import batched
from llmprune.walk.walk import Walk


@torch.no_grad()
def generated(model: PreTrainedModel, samples: int, length: int, temperature: float, seed: int) -> Tensor:
    """Windows int64 [samples, length], drawn from the whole vocabulary, past the ends of documents."""
    own = model.generation_config
    first = next(
        t for t in (own.bos_token_id, model.config.bos_token_id, own.eos_token_id, 0) if t is not None
    )
    start = torch.full((samples, 1), first[0] if isinstance(first, list) else first, device=model.device)
    how = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=length,
        bos_token_id=int(start[0, 0]),
        pad_token_id=0,  # never used: nothing ends early without an end token
        eos_token_id=None,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        model.generation_config, kept = how, own  # generate would fill ours in from the model's
        try:
            ids: Tensor = model.generate(start, attention_mask=torch.ones_like(start), use_cache=True)
        finally:
            model.generation_config = kept
    return ids[:, 1:].cpu()


def redrawn(store: Store, tokens: Tensor, batch: int, seed: int) -> Tensor:
    """Every token [N, L] but a window's first, drawn from what the model expects after those before it.

    Takes one forward pass. The same seed means the same noise at the same place, whatever the tokens are.
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
