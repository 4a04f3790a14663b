"""A whole model at one token a time, in a CUDA graph: dense, 2:4, without 30 % of its channels, or 6 blocks.

Random weights in the shape of Llama-3-8B, since speed does not depend on them; a figure is the median of
ROUNDS rounds of AT_ONCE steps of the same graph.

Kernels are chosen for one token at a time (`most=1`), since nothing else is measured.

    python kernels/benchmarks/decode.py --out kernels/results
"""

from __future__ import annotations

import json
from typing import Any

import timing
import torch
from llmprune_kernels.acceleration import accelerate
from registry import weight_24
from timing import AT_ONCE, DEVICE, ROUNDS, card, facts, graph_ms
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

CONTEXT = 512 if DEVICE == "cuda" else 16
# By what was done to it, channels and blocks.
KINDS = {
    "dense": (14336, 32),
    "2:4": (14336, 32),
    "30 % of the channels": (10048, 32),
    "6 of 32 blocks": (14336, 26),
}
ROWS, HIDDEN, HEADS = 128256, 4096, 32
SMALL = 64  # times smaller in a rehearsal


def build(kind: str) -> LlamaForCausalLM:
    """A model on the GPU, with random bfloat16 weights, 2:4 in its blocks if that is asked."""
    channels, blocks = KINDS[kind]
    by = 1 if DEVICE == "cuda" else SMALL
    config = LlamaConfig(
        vocab_size=ROWS // by,
        hidden_size=HIDDEN // by,
        intermediate_size=channels // by // 8 * 8,
        num_hidden_layers=max(1, blocks // by),
        num_attention_heads=max(1, HEADS // by),
        num_key_value_heads=max(1, HEADS // 4 // by),
    )
    with torch.device(DEVICE):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    if kind == "2:4":
        for module in model.model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = weight_24(*module.weight.shape, torch.bfloat16)
    return model


@torch.inference_mode()
def step_ms(model: LlamaForCausalLM) -> float:
    """The median time of one decoding step after CONTEXT tokens."""
    cache = StaticCache(config=model.config, max_cache_len=2 * CONTEXT)  # every replay adds a token
    ids = torch.randint(0, model.config.vocab_size, (1, CONTEXT), device=DEVICE)
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = torch.zeros(1, 1, dtype=torch.long, device=DEVICE)
    place = torch.tensor([[CONTEXT]], device=DEVICE)

    def step() -> Any:
        return model(token, position_ids=place, past_key_values=cache, use_cache=True).logits

    return graph_ms(step)


def main() -> None:
    """Measure the models one after the other, each without and with the kernels."""
    asked = timing.parsed(timing.parser(__doc__))
    rows = []
    for kind in KINDS:
        model = build(kind)
        plain = step_ms(model)
        table = str(accelerate(model, most=1)) if kind != "dense" else ""
        kernels = step_ms(model) if kind != "dense" else plain
        rows.append({"model": kind, "plain_ms": plain, "kernels_ms": kernels, "kernels": table})
        rows[-1]["ratio"] = round(rows[0]["plain_ms"] / kernels, 3)
        print(json.dumps(rows[-1]), flush=True)
        del model
        torch.cuda.empty_cache()
    protocol = f"Llama-3-8B, batch 1, steps after {CONTEXT} tokens, CUDA graph, "
    how = {"protocol": f"{protocol}median of {ROUNDS} rounds of {AT_ONCE}"}
    file = asked.out / f"{card()}_decode.json"
    file.write_text(json.dumps(facts() | how | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
