"""The packages that a result may depend on."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version

PACKAGES = ("llmprune", "torch", "transformers", "accelerate", "safetensors")


@cache
def installed() -> dict[str, str]:
    """Their versions, and Python's."""
    return {**{name: version(name) for name in PACKAGES}, "python": platform.python_version()}
