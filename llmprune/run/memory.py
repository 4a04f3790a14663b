"""Peak memory of this process."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil
import torch

from llmprune.checkpoint import devices
from llmprune.report import Memory

STATUS = Path("/proc/self/status")


def peak(device: torch.device) -> Memory:
    """Peak memory of this process so far; the resident set counts file pages that the system can drop."""
    return {"peak_rss_bytes": _resident(), "peak_device_bytes": devices.peak(device)}


def _resident() -> int:
    """The largest resident set of this process so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    status = STATUS.read_text() if STATUS.exists() else ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
        return int(found[1]) * 1024
    import resource

    # Begins with what the process that started this one once took, so the last to ask.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
