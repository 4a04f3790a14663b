"""What mixtures of experts cost: to observe, to prune, to open, and a block of a large one.

`loop`: a block's experts in our loop over transformers' grouped kernel, with and without what Wanda and REAP
see, medians of alternations. `run`: the whole time of pruning on 16 x 512 and on 64 x 512 tokens, over one
stock forward pass of them; writing, and loading the result in a fresh process, aside. `open`: seconds, bytes
written, and peak anonymous memory above the start, in blocks of bfloat16, of opening a checkpoint of 0.8 G
parameters and pruning it by magnitude; with the fresh process that loads all of the result, `check_blocks`.
`large`: one block of Qwen3-30B-A3B's shape (128 experts, 8 chosen), pruned on 8 x 1024 tokens.
Random weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch
from against_authors import write
from memory import anonymous
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig

import llmprune
from llmprune.checkpoint import reader, source
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.base import Sites, sites_of
from llmprune.patterns.experts import Experts
from llmprune.patterns.unstructured import Unstructured
from llmprune.tensors.contributions import Contributions
from llmprune.tensors.statistics import InputNorm, Statistic
from llmprune.walk.expert_loop import ExpertLoop

COMMON: dict[str, Any] = {"vocab_size": 1024, "norm_topk_prob": True, "decoder_sparse_step": 1}
RECIPES = {"wanda": {"method": "wanda", "sparsity": 0.5}, "reap": {"method": "reap", "sparsity": 0.25}}
KINDS: dict[type[Statistic], Sites] = {
    InputNorm: sites_of(Unstructured()),
    Contributions: sites_of(Experts()),
}
SHAPES: dict[str, dict[str, Any]] = {
    "wide": {
        **{"hidden_size": 1024, "moe_intermediate_size": 512, "num_experts": 16, "num_experts_per_tok": 4},
        **{"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128},
    },
    "open": {
        **{"hidden_size": 1024, "moe_intermediate_size": 512, "num_experts": 64, "num_experts_per_tok": 8},
        **{"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128},
    },
    "large": {
        **{"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8},
        **{"num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128},
    },
}


def made(folder: Path, shape: str) -> Path:
    """A checkpoint with random weights and a tokenizer of letters."""
    if not folder.exists():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            Qwen3MoeConfig(**COMMON, **SHAPES[shape]), dtype=torch.bfloat16
        )
        model.save_pretrained(folder, max_shard_size="300MB")
        letters = {"<unk>": 0, **{chr(i): i - 30 for i in range(33, 127)}}
        words = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return folder


def alternated(ways: dict[str, Callable[[], object]], times: int) -> dict[str, float]:
    """The median over alternations of each way's time over the first's."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
    first = next(iter(ways))
    pairs = {name: [a / b for a, b in zip(t[1:], taken[first][1:], strict=True)] for name, t in taken.items()}
    return {name: statistics.median(ratios) for name, ratios in pairs.items()}


@torch.no_grad()
def loop(folder: Path) -> dict[str, Any]:
    """The experts of one block on 2048 tokens, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layer = model.model.layers[0].mlp.experts
    experts, chosen = model.config.num_experts, model.config.num_experts_per_tok
    x = torch.randn(2048, model.config.hidden_size)
    weight, index = torch.rand(2048, experts).softmax(-1).topk(chosen)
    ways: dict[str, Callable[[], object]] = {"stock": lambda: layer(x, index, weight)}
    ways["loop"] = lambda: ExpertLoop(layer)(x, index, weight)
    for statistic, kind in KINDS.items():
        sites = [site for site in Anatomy(model, kind).block_sites(0) if site.layer is layer]
        ways[statistic.__name__] = _observing(layer, sites, statistic, (x, index, weight))
    return alternated(ways, 15)


def _observing(
    layer: Any, sites: list[Any], kind: type[Statistic], given: tuple[Tensor, ...]
) -> Callable[[], object]:
    def observe() -> object:
        seen = {site.name: kind(site.inputs) for site in sites}

        def at(site: Any, rows: Tensor) -> None:
            if len(rows):
                seen[site.name].update(rows)

        return ExpertLoop(layer, sites, at)(*given)

    return observe


@torch.no_grad()
def run(folder: Path) -> dict[str, Any]:
    """Pruning over one stock forward of the same tokens, in turns."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ratios: dict[str, list[float]] = {}
    for _ in range(3):
        for (name, recipe), windows in product(RECIPES.items(), (16, 64)):
            tokens = torch.randint(0, 1024, (windows, 512), generator=torch.Generator().manual_seed(0))
            start = time.perf_counter()
            for ids in tokens.split(4):
                model.model(ids, use_cache=False)
            plain = time.perf_counter() - start
            with tempfile.TemporaryDirectory(dir=folder.parent) as place:
                report = llmprune.prune(
                    folder, recipe, tokens=tokens, out=Path(place) / "out", dtype="float32"
                )
            spent = report.time["calibration_s"] + report.time["solve_s"]
            ratios.setdefault(f"{name}, {windows} x 512", []).append(spent / plain)
    return {name: statistics.median(values) for name, values in ratios.items()}


def opening(folder: Path) -> dict[str, Any]:
    """Seconds to open, bytes written meanwhile, and the peak of opening and pruning, in blocks."""
    found = source.find(str(folder))
    anatomy = reader.blueprint(found, sites_of(Unstructured()))
    _ = found.tensors
    process, written = psutil.Process(), _bytes_below(folder.parent)
    start = time.perf_counter()
    reader.open_streamed(found, anatomy, torch.bfloat16, torch.device("cpu"))
    seconds = time.perf_counter() - start
    grown = _bytes_below(folder.parent) - written
    block = sum(p.numel() for p in anatomy.blocks[0].parameters()) * 2
    before, done = anonymous(process), threading.Event()
    peaks = {False: 0, True: 0}  # of this process, and with the one that loads the result

    def watch() -> None:
        while not done.wait(0.05):
            peaks.update({both: max(peak, anonymous(process, children=both)) for both, peak in peaks.items()})

    thread = threading.Thread(target=watch)
    thread.start()
    llmprune.prune(
        folder, {"method": "magnitude", "sparsity": 0.5}, out=folder.with_name("out"), dtype="bfloat16"
    )
    done.set()
    thread.join()
    shutil.rmtree(folder.with_name("out"))
    outside = anatomy.parameters * 2 - block * len(anatomy.blocks)
    alone, both = ((peak - before - outside) / block for peak in peaks.values())
    return {
        "parameters": anatomy.parameters,
        "seconds": seconds,
        "written_bytes": grown,
        "peak_blocks": alone,
        "check_blocks": both,
    }


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def large(folder: Path) -> dict[str, Any]:
    """Seconds, and the plan's memory, of pruning one block."""
    tokens = torch.randint(0, 1024, (8, 1024), generator=torch.Generator().manual_seed(0))
    rows: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        plans: list[Any] = []
        out = folder.with_name("out")
        report = llmprune.prune(folder, recipe, tokens=tokens, out=out, on_plan=plans.append)
        shutil.rmtree(out)
        rows[name] = {"seconds": report.time, "needed_bytes": plans[0].needed_bytes, "sites": plans[0].sites}
    return rows


def main() -> None:
    """Measure the parts that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="where checkpoints are made")
    parser.add_argument("out", type=Path, help="a folder of eval/results, for a file a row")
    asked = parser.parse_args()
    parts = {
        "loop": (loop, "wide"),
        "run": (run, "wide"),
        "open": (opening, "open"),
        "large": (large, "large"),
    }
    for name, (measure, shape) in parts.items():
        if (asked.out / f"{name}.json").exists():
            continue
        row = {"name": name, "shape": SHAPES[shape], **measure(made(asked.work / shape, shape))}
        write(asked.out, str(__doc__), shape, row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
