"""How long pruning takes on a GPU: seconds per billion weights, and peak memory, by phase.

Random bfloat16 weights in the shape of Llama-3-8B's blocks, a few of them, with a small vocabulary;
calibrated on random tokens. A warm-up on one block comes first.

    python eval/benchmarks/on_gpu.py --out kernels/results
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import llmprune

RECIPES: dict[str, dict[str, Any]] = {
    "flap-20": {"method": "flap", "sparsity": 0.2},
    "wanda-2of4": {"method": "wanda", "pattern": "2:4"},
    "sparsegpt-2of4": {"method": "sparsegpt", "pattern": "2:4"},
}
SIZES = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
SMALL = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
ROWS = 1024  # of the vocabulary, which is not pruned


def saved(folder: Path, blocks: int, dry: bool) -> Path:
    """A checkpoint of random weights."""
    config = LlamaConfig(vocab_size=ROWS, num_hidden_layers=blocks, **(SMALL if dry else SIZES))
    with torch.device("cpu" if dry else "cuda"):
        LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def measured(dense: Path, recipe: dict[str, Any], tokens: torch.Tensor) -> dict[str, Any]:
    """One recipe's phases."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as out:
        report = llmprune.prune(dense, recipe, tokens=tokens, out=Path(out, "out"))
    billions = report.totals["prunable_parameters"] / 1e9
    seconds = {part: value for part, value in report.time.items() if part.endswith("_s")}
    per = {f"{part}_per_billion": value / billions for part, value in seconds.items()}
    return {"weights": report.totals["prunable_parameters"], **per, **report.memory}


def main() -> None:
    """Measure every recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--dry", action="store_true", help="rehearse on the CPU, with small blocks")
    parser.add_argument("--out", type=Path, required=True, help="a folder for pruning.json")
    asked = parser.parse_args()
    if not (torch.cuda.is_available() or asked.dry):
        sys.exit("this benchmark measures a GPU, and there is none here; --dry rehearses it on the CPU")
    samples, length = (4, 32) if asked.dry else (asked.samples, asked.length)
    tokens = torch.randint(0, ROWS, (samples, length), generator=torch.Generator().manual_seed(0))
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: a rehearsal on the CPU"
    told: dict[str, Any] = {"protocol": " ".join(str(__doc__).split()), "card": name, "rows": {}}
    told |= {"blocks": asked.blocks, "tokens": [samples, length]}
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        measured(saved(Path(work, "warm"), 1, asked.dry), RECIPES["wanda-2of4"], tokens[:2])
        dense = saved(Path(work, "dense"), asked.blocks, asked.dry)
        for recipe, what in RECIPES.items():
            told["rows"][recipe] = measured(dense, what, tokens)
            print(recipe, json.dumps(told["rows"][recipe]), flush=True)
            (asked.out / "pruning.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
