"""How fast a model writes here in an engine: what its parts take, and a pruned one beside the dense one.

In transformers the parts are measured. In llama.cpp writing a token is reading the weights once, so a part
takes its share of the bytes, and what that misses is corrected once a result is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmprune_eval import bench, blocks, engine
from llmprune_eval.blocks import LOAD, Latencies

from llmprune.checkpoint import shards, versions
from llmprune.checkpoint.once import Once
from llmprune.checkpoint.resources import resources
from llmprune.checkpoint.source import Source
from llmprune.errors import RequestError
from llmprune.export import gguf
from llmprune.planning.prices import Prices
from llmprune.planning.target import GGUF_ENGINE, Target
from llmprune.run.asked import Run
from llmprune.text import cache

TYPE = "q8_0"  # of the files that llama.cpp is measured with
ON_CPU = {"device": "cpu"}  # where it is, wherever the model is pruned


def latencies(found: Source, run: Run, target: Target, prices: Prices) -> Latencies:
    """What the parts of a model take; kept in the user's cache for other targets of the same model.

    Args:
        found: the dense model.
        run: where it is pruned, and runs in transformers.
        target: in which engine.
        prices: the bytes of its parts.

    Raises:
        RequestError: the engine is not there, or cannot run the model.
    """
    where = resources(run.device, run.dtype, run.max_memory, found.size[1], text=True)
    key = {
        "config": shards.sha256(found.folder / "config.json"),
        "versions": versions.installed(),
        "engine": target.engine,
    }
    if target.engine != GGUF_ENGINE:
        key |= {"device": where.name, "dtype": where.dtype_name}
    folder = cache.folder("latencies", {}, key)
    assert folder is not None

    def measured() -> dict[str, object]:
        if target.engine == GGUF_ENGINE:
            return asdict(_by_bytes(found, prices, folder))
        trust = run.trust_remote_code
        return asdict(blocks.measure(found.name, device=run.device, dtype=run.dtype, trust=trust))

    return Latencies(**Once(folder)("latencies", measured))


def _by_bytes(found: Source, prices: Prices, place: Path) -> Latencies:
    with _files(place, found.folder) as files:
        model = bench.compare(files, LOAD, ON_CPU)["models"][0]
    read = prices.whole - (prices.tables - 1) * prices.row / prices.tables * prices.rows
    return Latencies(
        token_s=1 / model["decode_tokens_per_s"],
        block=prices.block / read,
        channels=0.0 if prices.mixture else prices.inner / read,
        row=prices.row / prices.tables / read,
        protocol=f"{model['device']}, {TYPE}; parts by their shares of the bytes that a token reads",
    )


def speed(found: Source, folder: Path, run: Run, target: Target) -> float:
    """How many times as fast the model in a folder writes, in characters, whatever its tokens are.

    Raises:
        RequestError: the engine cannot run it.
    """
    if target.engine == GGUF_ENGINE:
        with _files(folder.parent, found.folder, folder) as files:
            return _ratio(files, ON_CPU)
    where = {"device": run.device, "dtype": run.dtype, "trust_remote_code": run.trust_remote_code}
    return _ratio([found.name, str(folder)], where)


def _ratio(both: list[str], where: dict[str, Any]) -> float:
    ratio: float = bench.compare(both, LOAD, where)["ratios"]["decode_characters_per_s"]["ratio"]
    return ratio


@contextmanager
def _files(place: Path, *folders: Path) -> Iterator[list[str]]:
    """Folders as llama.cpp reads them, below a place while the context is open."""
    if not engine.is_there():
        raise RequestError(
            "engine", f"llama.cpp was asked, and is not installed; run pip install {engine.PACKAGE}"
        )
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".gguf-", dir=place) as below:
        files = [Path(below, f"{number}.gguf") for number, _ in enumerate(folders)]
        yield [str(gguf.export(*pair, TYPE)) for pair in zip(folders, files, strict=True)]
