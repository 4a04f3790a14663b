"""What happened: sparsity and error of every site, time, memory, and how the result was checked."""

from __future__ import annotations

import json
import platform
import resource
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from llmprune.errors import RequestError

SCHEMA = 1


class SiteRecord(BaseModel):
    """One pruned layer. `error` is the relative error of its output on a sample of the calibration inputs."""

    model_config = ConfigDict(extra="forbid")

    name: str
    block: int
    kind: str
    asked: float
    reached: float
    dropped: int
    zeros: int
    weights: int
    units: list[int] | None = None
    """How many there were and are, where whole units go; `weights` then counts all that goes with them."""
    shape_before: list[int]
    shape_after: list[int]
    error: float | None
    notes: dict[str, float] = {}
    """What the method has to say, such as SparseGPT's damping."""


class Report(BaseModel):
    """`llmprune_report.json`; the layout is versioned by `schema`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    schema_: int = SCHEMA
    model: dict[str, Any]
    recipe: dict[str, Any]
    about: str = ""
    """What the method says of itself, and of where it wins or loses."""
    calibration: dict[str, Any] | None
    sites: list[SiteRecord]
    totals: dict[str, float | int]
    time: dict[str, float]
    memory: dict[str, int]
    reload: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    recovery: dict[str, Any] | None = None
    learned: dict[str, Any] | None = None
    """How the policy was trained, or which one was used."""
    versions: dict[str, str]
    fingerprint: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The report as it is written."""
        data = self.model_dump()
        return json.dumps({"schema": data.pop("schema_"), **data}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read a report back."""
        data = json.loads(text)
        return cls(schema_=data.pop("schema"), **data)


def totals(
    sites: list[SiteRecord], model: dict[str, Any], parameters_after: int, bytes_after: int
) -> dict[str, float | int]:
    """Counts over all sites, and over the whole model: parameters that are gone, zeros that are stored."""
    weights = sum(site.weights for site in sites)
    zeros = sum(site.zeros for site in sites)
    return {
        "sparsity": sum(site.dropped for site in sites) / weights,
        "model_sparsity": (zeros + model["parameters"] - parameters_after) / model["parameters"],
        "prunable_parameters": weights,
        "removed_parameters": model["parameters"] - parameters_after,
        "zero_parameters": zeros,
        "parameters_before": model["parameters"],
        "parameters_after": parameters_after,
        "bytes_before": model["bytes"],
        "bytes_after": bytes_after,
    }


def memory(device: torch.device) -> dict[str, int]:
    """Peak memory of this process so far; the resident set counts file pages that the system can drop."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "peak_device_bytes": on_device,
    }


@cache
def versions() -> dict[str, str]:
    """What the result may depend on."""
    packages = {
        name: version(name) for name in ("llmprune", "torch", "transformers", "accelerate", "safetensors")
    }
    return {**packages, "python": platform.python_version()}


def read(folder: Path) -> Report | None:
    """The report of a finished folder, or None.

    Raises:
        RequestError: there is one that cannot be read.
    """
    file = folder / "llmprune_report.json"
    if not file.is_file():
        return None
    try:
        return Report.from_json(file.read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            "model", f"{file} cannot be read as a report of llmprune; restore it, or prune anew"
        ) from error
