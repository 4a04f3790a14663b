"""How fast a model writes on this device: its parts, measured once, and a pruned one beside the dense one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from llmprune_eval import bench, blocks
from llmprune_eval.blocks import LOAD, Latencies

from llmprune.checkpoint import shards, versions
from llmprune.checkpoint.once import Once
from llmprune.checkpoint.resources import resources
from llmprune.checkpoint.source import Source
from llmprune.run.asked import Run
from llmprune.text import cache


def latencies(found: Source, run: Run) -> Latencies:
    """What the parts of a model take; kept in the user's cache for other targets of the same model."""
    where = resources(run.device, run.dtype, run.max_memory, found.size[1], text=True)
    key = {
        "config": shards.sha256(found.folder / "config.json"),
        "device": where.name,
        "dtype": where.dtype_name,
        "versions": versions.installed(),
    }
    folder = cache.folder("latencies", {}, key)
    assert folder is not None

    def measured() -> dict[str, object]:
        trust = run.trust_remote_code
        return asdict(blocks.measure(found.name, device=run.device, dtype=run.dtype, trust=trust))

    return Latencies(**Once(folder)("latencies", measured))


def speed(dense: str, folder: Path, run: Run) -> float:
    """How many times as fast the model in a folder writes, in characters, whatever its tokens are."""
    both = [dense, str(folder)]
    where = {"device": run.device, "dtype": run.dtype, "trust_remote_code": run.trust_remote_code}
    found = bench.compare(both, LOAD, where)
    ratio: float = found["ratios"]["decode_characters_per_s"]["ratio"]
    return ratio
