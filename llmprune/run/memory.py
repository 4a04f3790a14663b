"""Peak memory of this process."""

from __future__ import annotations

import sys

import psutil
import torch

from llmprune.checkpoint import devices
from llmprune.report import Memory


def peak(device: torch.device) -> Memory:
    """Peak memory of this process so far; the resident set counts file pages that the system can drop."""
    return {"peak_rss_bytes": _resident(), "peak_device_bytes": devices.peak(device)}


def _resident() -> int:
    """The largest resident set of this process so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
