"""Draw tokens from the model: one after another, or at all positions of a window in one forward pass.

After k redraws of a whole window, its first k tokens are those that the model would have generated one by
one. The noise at each position is the same in every pass, so most tokens settle much earlier (Jacobi
iteration; Song et al., 2021, arXiv:2002.03629).

Letters used in shapes: N windows, L tokens, B windows of one batch, R rows of one chunk, T tokens that are
drawn, D hidden size, V vocabulary.
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
def generate(
    model: PreTrainedModel,
    samples: int,
    length: int,
    temperature: float,
    seed: int,
    bos: tuple[int, ...] = (),
) -> Tensor:
    """Generate windows int64 [samples, length] by sampling the whole vocabulary, without an end token.

    They continue `bos`, or the model's own first token if there is none, and do not contain it.
    """
    config = model.generation_config
    first = next(
        t for t in (config.bos_token_id, model.config.bos_token_id, config.eos_token_id, 0) if t is not None
    )
    begin = bos or (first[0] if isinstance(first, list) else first,)
    start = torch.tensor([begin] * samples)
    ours = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,  # transformers cuts to the 50 likeliest tokens by default
        max_new_tokens=length,
        bos_token_id=int(start[0, 0]),
        pad_token_id=0,  # never used: no sequence ends early without an end token
        eos_token_id=None,
    )
    return _sampled(model, start, torch.ones_like(start), ours, seed)[:, len(begin) :]


@torch.no_grad()
def answers(
    model: PreTrainedModel, prompts: list[Tensor], most: int, temperature: float, seed: int
) -> list[Tensor]:
    """Answer prompts [T] by sampling the whole vocabulary; return each with its answer, the end included.

    Args:
        model: the dense model, whose generation config names what ends an answer.
        prompts: token ids, of one batch.
        most: tokens of an answer at most.
        temperature: of the sampling.
        seed: of the sampling.
    """
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    length = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(prompt, (length - len(prompt), 0)) for prompt in prompts])
    read = torch.stack([torch.arange(length) >= length - len(prompt) for prompt in prompts]).long()
    ours = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=most,
        pad_token_id=ends[0] if ends else 0,
        eos_token_id=ends or None,
    )
    drawn = _sampled(model, ids, read, ours, seed)[:, length:]
    return [torch.cat([prompt, _until(row, ends)]) for prompt, row in zip(prompts, drawn, strict=True)]


def _until(row: Tensor, ends: list[int]) -> Tensor:
    """The tokens of one answer up to the first that ends it."""
    found = torch.isin(row, torch.tensor(ends, dtype=row.dtype)).nonzero()
    return row[: int(found[0]) + 1] if len(found) else row


def _sampled(model: PreTrainedModel, ids: Tensor, read: Tensor, how: GenerationConfig, seed: int) -> Tensor:
    """The ids [N, T] with what the model draws after them; `read` [N, T] is 0 where padding stands."""
    kind = model.device.type
    # `generate` draws from the global generator: seed it here and give the caller's state back.
    with torch.random.fork_rng([] if kind in ("cpu", "mps") else [model.device], device_type=kind):
        torch.manual_seed(seed)
        # Replaced rather than passed as an argument: `generate` fills what an argument leaves unset (such
        # as the end token) from the model's own config.
        model.generation_config, kept = how, model.generation_config
        try:
            drawn: Tensor = model.generate(
                ids.to(model.device), attention_mask=read.to(model.device), use_cache=True
            )
        finally:
            model.generation_config = kept
    return drawn.cpu()


def redraw(store: Store, tokens: Tensor, batch: int, seed: int, kept: int = 1) -> Tensor:
    """Redraw every token [N, L] but the first `kept` of a window, given the tokens before it.

    Takes one forward pass. A seed gives the same noise at each position, whatever the tokens are.
    """
    anatomy = store.anatomy
    walk = Walk(store, batched(tokens, batch), tokens[:1, :1])
    hidden: list[Tensor] = []
    for stage in walk.stages("drawing tokens"):
        if stage.index == len(anatomy.blocks) - 1:
            hidden = stage.run()
    # Allocated once: many small tensors between the large logits would fragment the heap.
    redrawn = torch.empty_like(tokens[:, kept:])
    rows = max(1, ops.CHUNK // anatomy.vocabulary)  # logits [R, V] of all positions would not fit
    with store.head():
        device = walk.logits(hidden[0][:1, :1]).device
        generator = torch.Generator(device).manual_seed(seed)
        for out, states in zip(redrawn.split(batch), hidden, strict=True):
            for ids, part in _chunks(rows, out, states[:, kept - 1 : -1]):
                ids.copy_(_draw(walk.logits(part[:, None])[:, 0].float(), generator))
    return torch.cat([tokens[:, :kept], redrawn], 1)


def _chunks(rows: int, ids: Tensor, states: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids [B, T] and hidden states [B, T, D] flattened to chunks of `rows`; the ids are views."""
    return zip(ids.view(-1).split(rows), states.flatten(0, 1).split(rows), strict=True)


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sample one token per row [R, V]: the argmax after adding Gumbel noise.

    Unlike `torch.multinomial`, the same noise mostly gives the same token when the logits change little.
    """
    noise = torch.rand(logits.shape, generator=generator, device=logits.device).log_().neg_().log_()
    return (logits - noise).argmax(-1)  # noise holds log(-log u), and Gumbel noise is its negative
