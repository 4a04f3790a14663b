"""Text that the model writes itself, sampled token by token: calibration that needs no data set.

A language model is a distribution over texts, and draws from it resemble what it was trained on (Williams &
Aletras, 2024, arXiv:2410.17170). What was written is kept in the user's cache batch by batch, so a run that
was cut off goes on where it was, and more windows of the same text cost only what is new.

Letters used in shapes: N windows, L tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from llmprune.checkpoint.gguf import cache_folder
from llmprune.checkpoint.shards import save_atomically
from llmprune.progress import track
from llmprune.text.calibration import Calibration, Windows

TOKENS = 8192  # written at a time, and
MOST = 128  # windows: both are part of what a seed means


def windows(
    asked: Calibration,
    length: int,
    open_model: Callable[[], PreTrainedModel],
    identity: dict[str, Any] | None,
) -> Windows:
    """Windows of text that the model goes on writing from its first token, past the ends of documents.

    Args:
        asked: how many windows, from which seed, and at which temperature.
        length: tokens per window.
        open_model: called if there is anything left to write.
        identity: what the text depends on besides the above; None to keep nothing.
    """
    size = batch_size(length)
    how = {"length": length, "seed": asked.seed, "temperature": asked.temperature, "batch": size}
    folder = kept_in("self", how | identity) if identity is not None else None
    batches: list[Tensor] = []
    model: PreTrainedModel | None = None
    for number in track(range(-(-asked.samples // size)), "writing calibration text"):
        file = folder / f"{number:05d}.safetensors" if folder else None
        if file and file.is_file():
            batches.append(load_file(file)["tokens"])
            continue
        model = model or open_model()
        batches.append(_written(model, size, length, asked.temperature, (asked.seed << 20) + number))
        if file:
            save_atomically({"tokens": batches[-1]}, file)
    return Windows(torch.cat(batches)[: asked.samples], "self", asked.seed)


def batch_size(length: int) -> int:
    """Windows written at a time: the shorter, the more."""
    return max(1, min(MOST, TOKENS // length))


def kept_in(kind: str, identity: dict[str, Any]) -> Path:
    """The folder of one text: whatever it depends on is in its name."""
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / kind / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@torch.no_grad()
def _written(model: PreTrainedModel, size: int, length: int, temperature: float, seed: int) -> Tensor:
    """One batch of windows int64 [size, length], drawn from the whole vocabulary."""
    own = model.generation_config
    first = next(
        t for t in (own.bos_token_id, model.config.bos_token_id, own.eos_token_id, 0) if t is not None
    )
    start = torch.full((size, 1), first[0] if isinstance(first, list) else first, device=model.device)
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
