"""The peak is that of this very process, in bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from llmprune.run import memory


def test_the_peak_is_at_least_what_is_held_now() -> None:
    before = memory.peak(torch.device("cpu"))
    held = torch.ones(1 << 26, dtype=torch.uint8)
    now = psutil.Process().memory_info().rss
    found = memory.peak(torch.device("cpu"))
    assert found["peak_rss_bytes"] >= max(before["peak_rss_bytes"], 0.9 * now) > len(held)
    assert found["peak_device_bytes"] == 0


ASK = """
import torch
from llmprune.run import memory
print(memory.peak(torch.device("cpu"))["peak_rss_bytes"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc/self/status")
def test_what_started_the_process_does_not_count() -> None:
    held = torch.ones(1 << 30, dtype=torch.uint8)
    found = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert 0 < int(found.stdout) < len(held)
