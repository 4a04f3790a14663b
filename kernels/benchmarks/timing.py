"""How long something takes on a GPU, as it runs in a CUDA graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

REPLAYS = 100


def graph_ms(run: Callable[[], object]) -> float:
    """The median milliseconds of REPLAYS replays of what `run` launches.

    It runs before the capture too, on another stream: there it compiles, and searches where it is asked to.
    """
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)
