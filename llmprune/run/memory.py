"""Peak memory of this process."""

from __future__ import annotations

import resource
import sys

import torch

from llmprune.report import Memory


def peak(device: torch.device) -> Memory:
    """Peak memory of this process so far; the resident set counts file pages that the system can drop."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "peak_rss_bytes": resident if sys.platform == "darwin" else resident * 1024,
        "peak_device_bytes": on_device,
    }
