"""Acceptance: mlx-lm computes what transformers computes, for `per_layer` folders that llmprune wrote.

In two environments: `in_mlx.py expected DIR...`, with transformers, writes `DIR-expected.safetensors` beside
every folder; `in_mlx.py compare DIR...`, with `mlx-lm` 0.32.2 on `mlx[cpu]`, loads each as `mlx_lm.generate
--trust-remote-code` does, and tells the largest difference of the logits of 64 tokens, read at once and token
by token with a cache.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import versions

TOKENS = 64


def expected(folder: Path) -> None:
    """Write token ids and the logits of transformers beside a folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(3, rows, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids).logits.contiguous()
    save_file({"ids": ids, "logits": logits}, folder.with_name(f"{folder.name}-expected.safetensors"))


def compare(folder: Path) -> dict[str, float]:
    """The largest differences of a folder's logits."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(folder, trust_remote_code=True)
    known = mx.load(str(folder.with_name(f"{folder.name}-expected.safetensors")))
    cache = make_prompt_cache(model)
    steps = [model(known["ids"][:, n : n + 1], cache=cache) for n in range(TOKENS)]
    found = {"": model(known["ids"]), "_cached": mx.concatenate(steps, axis=1)}
    return {
        f"largest_difference{how}": float(mx.abs(logits - known["logits"]).max())
        for how, logits in found.items()
    }


def main() -> None:
    """Do one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["expected", "compare"])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    if arguments.step == "expected":
        for folder in arguments.folders:
            expected(folder)
        return
    rows = {folder.name: compare(folder) for folder in arguments.folders}
    print(json.dumps(rows, indent=1))
    versions.keep(arguments.out, rows, ("mlx-lm", "mlx"))


if __name__ == "__main__":
    main()
