"""Time every provider on every shape beside dense cuBLAS in the same run, and write CSV and JSON.

Calls are captured in a CUDA graph, over as many weights as exceed four times the cache, on random data; a
figure is the median of ROUNDS rounds of AT_ONCE replays. Only ratios within a run are worth quoting.

    python kernels/benchmarks/run.py --out kernels/results
    LLMPRUNE_AUTOTUNE=1 python kernels/benchmarks/run.py --out kernels/results     # searches first
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import registry
import timing
import torch
from registry import Product
from timing import AT_ONCE, DEVICE, ROUNDS, card, facts, graph_ms
from torch import Tensor

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def microseconds(make: Callable[[], Product], x: Tensor, weight_bytes: int) -> float:
    """The median time of one call."""
    cache = torch.cuda.get_device_properties(x.device).L2_cache_size if DEVICE == "cuda" else 0
    runs = [make() for _ in range(4 * cache // weight_bytes + 1)]

    def all_of_them() -> None:
        for run in runs:
            run(x)

    return 1000 * graph_ms(all_of_them) / len(runs)


def sparse_rows(
    dtype: torch.dtype, tokens: list[int], shapes: list[str], providers: list[str]
) -> Iterator[dict[str, Any]]:
    """2:4 products."""
    known = registry.SPARSE if DEVICE == "cuda" else registry.REHEARSED
    for shape, (n, k) in known.items():
        for m in tokens if DEVICE == "cpu" or shape in shapes else ():
            x = torch.randn(m, k, device=DEVICE, dtype=dtype)
            for provider in providers:
                make = registry.SPARSE_PROVIDERS[provider]
                yield row("2:4", shape, provider, m, partial(make, n, k, dtype), x, n * k * 9 // 8)


def shrunk_rows(dtype: torch.dtype, tokens: list[int], *_: list[str]) -> Iterator[dict[str, Any]]:
    """MLPs that have lost channels."""
    dense = registry.DENSE_CHANNELS
    for m in tokens:
        x = torch.randn(m, registry.HIDDEN, device=DEVICE, dtype=dtype)
        ways = [("cublas", dense, False, False), ("ours", dense, True, True)]
        for width in registry.WIDTHS:
            ways += [(f"cublas, {width}", width, False, False), (f"ours, {width}", width, True, True)]
        for provider, channels, fused, padded in ways:
            make = partial(registry.mlp, channels, dtype, fused=fused, padded=padded)
            yield row("shrunk MLP", f"{dense} channels", provider, m, make, x, 6 * channels * registry.HIDDEN)


def row(
    kind: str, shape: str, provider: str, m: int, make: Callable[[], Product], x: Tensor, size: int
) -> dict[str, Any]:
    """One measurement, or why there is none."""
    found: dict[str, Any] = {"kind": kind, "shape": shape, "provider": provider, "tokens": m, "us": None}
    try:
        found["us"] = round(microseconds(make, x, size), 2)
    except Exception as error:  # a peer may refuse a shape in any way; where it is ours, `main` fails
        found["error"] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    return found


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with its speed over that of cuBLAS on the same shape and tokens."""
    places = ("kind", "shape", "tokens")
    base = {tuple(r[p] for p in places): r["us"] for r in rows if r["provider"] == "cublas"}
    for found in rows:
        dense = base.get(tuple(found[p] for p in places))
        found["ratio"] = round(dense / found["us"], 3) if dense and found["us"] else None
    return rows


def main() -> None:
    """Measure, and write."""
    parser = timing.parser(__doc__)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(registry.TOKENS))
    parser.add_argument("--kinds", nargs="+", choices=("2:4", "shrunk"), default=["2:4", "shrunk"])
    parser.add_argument("--shapes", nargs="+", default=list(registry.SPARSE), choices=list(registry.SPARSE))
    every = list(registry.SPARSE_PROVIDERS)
    parser.add_argument("--providers", nargs="+", default=every, choices=every)
    asked = timing.parsed(parser)
    chosen = {"2:4": sparse_rows, "shrunk": shrunk_rows}
    rows = []
    for kind in asked.kinds:
        for found in chosen[kind](DTYPES[asked.dtype], asked.tokens, asked.shapes, asked.providers):
            rows.append(found)
            print(json.dumps(found), flush=True)
    how = {
        "dtype": asked.dtype,
        "protocol": "CUDA graphs over weights of more than 4 x L2, random data, "
        f"median of {ROUNDS} rounds of {AT_ONCE} replays",
    }
    rows = with_ratios(rows)
    name = f"{card()}_{asked.dtype}"
    (asked.out / f"{name}.json").write_text(json.dumps(facts() | how | {"rows": rows}, indent=1) + "\n")
    with (asked.out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["kind", "shape", "provider", "tokens", "us", "ratio", "error"])
        writer.writeheader()
        writer.writerows(rows)
    if failed := [found for found in rows if found["provider"].startswith("ours") and "error" in found]:
        sys.exit(f"{len(failed)} of our own measurements failed; their errors are in {asked.out / name}.json")


if __name__ == "__main__":
    main()
