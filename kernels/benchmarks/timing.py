"""How long something takes on a GPU, as it runs in a CUDA graph.

Some replays follow one another between two events: the host launches each while the one before it runs, so
what a launch costs the host does not count. Without a GPU there is a rehearsal: everything runs on the CPU,
with a plain clock, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from llmprune_kernels import tuning

ROUNDS = 20
AT_ONCE = 20
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parser(about: str | None) -> argparse.ArgumentParser:
    """What every benchmark can be asked."""
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--dry", action="store_true", help="rehearse on the CPU, with small shapes")
    found.add_argument("--out", type=Path, default=Path("kernels/results"))
    return found


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked; it leaves where nothing can be measured, unless a rehearsal was asked."""
    asked = parser.parse_args()
    if DEVICE == "cpu" and not asked.dry:
        sys.exit("this benchmark measures a GPU, and there is none here; --dry rehearses it on the CPU")
    asked.out.mkdir(parents=True, exist_ok=True)
    return asked


def card() -> str:
    """What the files of results are called after."""
    return tuning.card(torch.device(DEVICE)) if DEVICE == "cuda" else "rehearsal"


def facts() -> dict[str, Any]:
    """The machine."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "none: a rehearsal on the CPU"
    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    return {"card": name, "versions": versions}


def graph_ms(run: Callable[[], object]) -> float:
    """The milliseconds of a replay of what `run` launches: the median of ROUNDS rounds of AT_ONCE replays.

    It runs before the capture too, on another stream: there it compiles, and searches where it is asked to.
    """
    if DEVICE == "cpu":
        return _clocked_ms(run)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(AT_ONCE):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / AT_ONCE)
    return statistics.median(times)


def _clocked_ms(run: Callable[[], object]) -> float:
    """The milliseconds of one call, the faster of two."""
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - begin))
    return min(times)
