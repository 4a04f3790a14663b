"""The versions of the packages that a result may depend on."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version

PACKAGES = ("llmprune", "torch", "transformers", "accelerate", "safetensors")


@cache
def installed() -> dict[str, str]:
    """The installed versions of PACKAGES and of Python, by name."""
    return {**{name: version(name) for name in PACKAGES}, "python": platform.python_version()}
