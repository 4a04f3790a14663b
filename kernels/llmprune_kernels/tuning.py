"""How each kernel is cut into programs and warps: from a file for this GPU, else a sane default.

Files are JSON: `configs/CARD.json` in the package, then in the user's cache, where `LLMPRUNE_AUTOTUNE=1`
writes what it finds. A key is a kernel, a bucket of token counts and a shape. Nothing is searched unasked.

Letters used: M tokens, N outputs, K inputs.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from llmprune_kernels.errors import KernelError

Config = dict[str, int]
Search = Iterable[Callable[[Config], Iterable[Config]]]
BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""The largest M of each bucket; more than the last is one more."""
PROGRAMS = 264
"""How many programs keep a large card busy: two for each of an H100's 132 multiprocessors."""


def bucket(m: int) -> int:
    """The largest M of the bucket that `m` falls into."""
    return next((largest for largest in BUCKETS if m <= largest), 2 * BUCKETS[-1])


@functools.cache
def card(device: torch.device) -> str:
    """A file name for the GPU."""
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def cache_folder() -> Path:
    """Where searched configurations are kept."""
    return Path(os.environ.get("LLMPRUNE_CACHE", Path.home() / ".cache" / "llmprune")) / "kernels"


@functools.cache
def _known(name: str) -> dict[str, Config]:
    found: dict[str, Config] = {}
    for folder in (Path(__file__).parent / "configs", cache_folder()):
        file = folder / f"{name}.json"
        if file.is_file():
            try:
                found |= json.loads(file.read_text())
            except ValueError as error:
                raise KernelError(f"{file} is no JSON of tuned kernels ({error}); delete it") from error
    return found


def pick(
    kernel: str,
    shape: tuple[int, int, int],
    device: torch.device,
    default: Config,
    search: Search,
    run: Callable[[Config], object],
) -> Config:
    """The configuration of a kernel for M, N, K on a device.

    Args:
        kernel: its name.
        shape: M, N, K.
        device: where it will run.
        default: what serves where nothing is known.
        search: what is tried, step by step, beside the best that is known by then.
        run: starts the kernel with a configuration.
    """
    if device.type != "cuda":
        return default
    m, n, k = shape
    key = f"{kernel} {bucket(m)} {n} {k}"
    known = _known(card(device))
    if (
        key not in known
        and os.environ.get("LLMPRUNE_AUTOTUNE") == "1"
        and not torch.cuda.is_current_stream_capturing()
    ):
        for step in search:
            known[key] = _fastest([known.get(key, default), *step(known.get(key, default))], run)
        _keep(card(device), key, known[key])
    return known.get(key, default)


def _fastest(configs: list[Config], run: Callable[[Config], object]) -> Config:
    """The configuration with the smallest median time; those that the card cannot hold are left out."""
    from triton.runtime.errors import OutOfResources

    times: dict[int, float] = {}
    for number, config in enumerate(configs):
        try:
            times[number] = _milliseconds(functools.partial(run, config))
        except OutOfResources:
            continue
    return configs[min(times, key=times.__getitem__, default=0)]


def _milliseconds(run: Callable[[], object]) -> float:
    """The time of a call in a CUDA graph once its weights have left the cache; that adds the same to each."""
    from triton.testing import do_bench_cudagraph

    cache = torch.cuda.get_device_properties().L2_cache_size
    other = torch.zeros(2 * cache, dtype=torch.uint8, device="cuda")

    def cold() -> None:
        other.max()  # read, not written: nothing is left to write back
        run()

    return float(do_bench_cudagraph(cold, rep=10, return_mode="median"))


def _keep(name: str, key: str, config: Config) -> None:
    file = cache_folder() / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(file.read_text()) if file.is_file() else {}
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(kept | {key: config}, indent=1, sort_keys=True))
    partial.replace(file)


def power_of_two(number: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << (max(number, 1) - 1).bit_length()


def splits_for(programs: int, most: int) -> int:
    """How many ways to share out the inputs so that the card is busy, up to `most`."""
    wanted = PROGRAMS // max(programs, 1)
    return max(1, min(1 << wanted.bit_length() - 1 if wanted else 1, most))
