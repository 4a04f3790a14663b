"""The peak is that of this very process, in bytes."""

from __future__ import annotations

import psutil
import torch

from llmprune.run import memory


def test_the_peak_is_at_least_what_is_held_now() -> None:
    before = memory.peak(torch.device("cpu"))
    held = torch.ones(1 << 26, dtype=torch.uint8)
    now = psutil.Process().memory_info().rss
    found = memory.peak(torch.device("cpu"))
    assert found["peak_rss_bytes"] >= max(before["peak_rss_bytes"], 0.9 * now) > len(held)
    assert found["peak_device_bytes"] == 0
