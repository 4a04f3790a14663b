"""A whole model at one token a time, in a CUDA graph: dense, 2:4, and with 30 % of its channels cut.

Random weights in the shape of Llama-3-8B, since speed does not depend on them; a figure is the median of
ROUNDS rounds of AT_ONCE steps of the same graph.

    python kernels/benchmarks/decode.py --out kernels/results
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from llmprune_kernels import tuning
from llmprune_kernels.acceleration import accelerate
from registry import weight_24
from timing import AT_ONCE, ROUNDS, graph_ms
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

CONTEXT = 512
SHAPE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
CHANNELS = {"dense": 14336, "2:4": 14336, "30 % of the channels": 10048}


def build(kind: str) -> LlamaForCausalLM:
    """A model on the GPU, with random bfloat16 weights, 2:4 in its blocks if that is asked."""
    config = LlamaConfig(vocab_size=128256, intermediate_size=CHANNELS[kind], **SHAPE)
    with torch.device("cuda"):
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
    ids = torch.randint(0, 128256, (1, CONTEXT), device="cuda")
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = torch.zeros(1, 1, dtype=torch.long, device="cuda")
    place = torch.tensor([[CONTEXT]], device="cuda")

    def step() -> Any:
        return model(token, position_ids=place, past_key_values=cache, use_cache=True).logits

    return graph_ms(step)


def main() -> None:
    """Measure the three models one after the other, each without and with the kernels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("kernels/results"))
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark measures a GPU, and there is none here")
    rows = []
    for kind in CHANNELS:
        model = build(kind)
        plain = step_ms(model)
        table = str(accelerate(model)) if kind != "dense" else ""
        kernels = step_ms(model) if kind != "dense" else plain
        rows.append({"model": kind, "plain_ms": plain, "kernels_ms": kernels, "kernels": table})
        rows[-1]["ratio"] = round(rows[0]["plain_ms"] / kernels, 3)
        print(json.dumps(rows[-1]), flush=True)
        del model
        torch.cuda.empty_cache()
    facts = {
        "card": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda},
        "protocol": f"Llama-3-8B, batch 1, steps after {CONTEXT} tokens, CUDA graph, "
        f"median of {ROUNDS} rounds of {AT_ONCE}",
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / f"{tuning.card(torch.device('cuda'))}_decode.json"
    file.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
