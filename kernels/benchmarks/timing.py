"""How long something takes on a GPU, as it runs in a CUDA graph.

Some replays follow one another between two events: the host launches each while the one before it runs, so
what a launch costs the host does not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

ROUNDS = 20
AT_ONCE = 20


def graph_ms(run: Callable[[], object]) -> float:
    """The milliseconds of a replay of what `run` launches: the median of ROUNDS rounds of AT_ONCE replays.

    It runs before the capture too, on another stream: there it compiles, and searches where it is asked to.
    """
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
