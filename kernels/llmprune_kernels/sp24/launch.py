"""Start the 2:4 kernels: which one, cut up how, and in what buffers.

Letters used in shapes: M tokens, N outputs, K inputs; T tiles of 16 outputs, S steps of 32 inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, product
from math import prod
from typing import Any

import torch
from torch import Tensor

from llmprune_kernels import tuning
from llmprune_kernels.device import interpreting, is_nvidia, on_device
from llmprune_kernels.formats.fragments import Fragments
from llmprune_kernels.job import Job
from llmprune_kernels.sp24.pack_tokens import pack_kernel
from llmprune_kernels.sp24.portable import portable_kernel, unpack_kernel
from llmprune_kernels.sp24.skinny import skinny_kernel
from llmprune_kernels.tuning import Config

FEW = 8
"""Tokens of one tile: their words are read where they lie, and those of more are first put in order."""
TYPES = {torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, kw_only=True)
class Sp24Job(Job):
    """A product with a packed 2:4 weight; with two halves, the gate's tiles and then the other's."""

    values: Tensor
    """int32 [T, S, 32, 4]."""
    meta: Tensor
    """int32 [T, S/2, 32]."""

    @property
    def tiles(self) -> int:
        """T of one half."""
        return self.values.shape[0] // self.halves

    @property
    def steps(self) -> int:
        """S/2, steps of 64 inputs."""
        return self.meta.shape[1]


def run(job: Sp24Job) -> Tensor:
    """The product [M, N], by the sparse tensor cores where there are some and no search has found better."""
    sparse = is_nvidia(job.x.device)
    default = skinny_default(job) if sparse else portable_default(job)

    def cuts(best: Config) -> Iterator[Config]:
        return chain(skinny_cuts(job) if sparse else (), portable_cuts(job))

    with on_device(job.x):
        name, search = f"sp24_{job.halves}", (cuts, shares)
        config = tuning.pick(name, job.shape, job.x.device, default, search, lambda c: start(job, c))
        return start(job, config)


def shares(best: Config) -> Iterator[Config]:
    """Ways to share out the inputs that are worth trying on a card."""
    ways = {"SPLITS": (1, 2, 4, 8)} | ({"UNROLL": (1, 2, 4)} if "UNROLL" in best else {})
    for values in product(*ways.values()):
        yield best | dict(zip(ways, values, strict=True))


def start(job: Sp24Job, config: Config) -> Tensor:
    """Run the kernel that a configuration is for."""
    return (skinny if "RT" in config else portable)(job, config)


def skinny(job: Sp24Job, config: Config) -> Tensor:
    """By `mma.sp`."""
    m, k = job.x.shape
    blocks = -(-m // (8 * config["MT"]))
    constants = flags(job, config)
    words = as_words(job.x)
    if config["PACKED"]:
        words = packed_tokens(words, m, k, job.steps, blocks * config["MT"])
    out, part = job.buffers(config["SPLITS"], config["SPLITS"] > 1)
    bias, residual, has_bias, has_residual = job.extras()
    skinny_kernel[(blocks, -(-job.tiles // (config["RT"] * config["WARPS_N"])), config["SPLITS"])](
        words, job.values, job.meta, bias, residual, part, m, job.n, k, job.tiles, job.steps,
        **constants, HALVES=job.halves, HAS_BIAS=has_bias, HAS_RESIDUAL=has_residual,
        **config, num_warps=config["WARPS_N"] * config["WARPS_K"],
    )  # fmt: skip
    return job.combined(out, part)


def flags(job: Sp24Job, config: Config) -> dict[str, Any]:
    """What the kernel is told of a product besides its cut: its type, and which masks it can do without."""
    even = job.steps % (config["WARPS_K"] * config["SPLITS"] * config["UNROLL"]) == 0
    return {
        "TYPE": TYPES[job.x.dtype],
        "EVEN_N": job.tiles % (config["RT"] * config["WARPS_N"]) == 0,
        "EVEN_K": even and (config["PACKED"] == 1 or job.x.shape[1] % 64 == 0),
    }


def as_words(x: Tensor) -> Tensor:
    """x [M, K] as int32 [M, K/2], copied only if its rows or its beginning are not where words can begin."""
    x = x.contiguous()
    aligned = x.storage_offset() % 2 == 0 and x.stride(0) % 2 == 0
    return (x if aligned else x.clone(memory_format=torch.contiguous_format)).view(torch.int32)


def packed_tokens(words: Tensor, m: int, k: int, steps: int, tiles: int) -> Tensor:
    """Words of x in the order of the right operand, int32 [tiles, 2 steps, 32, 4]."""
    out = words.new_empty(tiles, 2 * steps, 32, 4)
    block = 1024
    pack_kernel[(-(-steps * 256 // block), tiles)](words, out, m, k, steps, BLOCK=block)
    return out


def skinny_default(job: Sp24Job) -> Config:
    """Warps share out the inputs where tokens are few; with more, a warp takes several tiles of outputs."""
    mt = min(8, tuning.power_of_two(-(-len(job.x) // 8)))
    rt, warps_n, warps_k = {1: (1, 1, 8), 2: (1, 1, 8), 4: (2, 2, 2), 8: (2, 4, 1)}[mt]
    rt = max(1, rt // job.halves)
    programs = -(-job.tiles // (rt * warps_n)) * -(-len(job.x) // (8 * mt))
    splits = tuning.splits_for(programs, min(8, max(1, job.steps // (4 * warps_k))))
    # A loop that ends evenly has no masks in it: the largest shares that do so are taken, if any do.
    halved = [splits >> i for i in range(splits.bit_length())]
    fewer = product((warps_k, max(1, warps_k // 2)), halved, (2, 1))
    even = (cut for cut in fewer if job.steps % prod(cut) == 0)
    warps_k, splits, unroll = next(even, (warps_k, splits, 2))
    cut = {"RT": rt, "MT": mt, "WARPS_N": warps_n, "WARPS_K": warps_k}
    return cut | {"SPLITS": splits, "UNROLL": unroll, "PACKED": int(len(job.x) > FEW)}


def skinny_cuts(job: Sp24Job) -> Iterator[Config]:
    """Tiles and warps that are worth trying on a card."""
    tiles = (1, 2) if job.halves == 1 else (1,)
    warps = ((1, 4), (1, 8), (2, 2), (2, 4), (4, 1), (4, 2))
    for rt, (warps_n, warps_k), packed in product(tiles, warps, (0, 1) if len(job.x) > FEW else (0,)):
        yield skinny_default(job) | {"RT": rt, "WARPS_N": warps_n, "WARPS_K": warps_k, "PACKED": packed}


def portable(job: Sp24Job, config: Config) -> Tensor:
    """By decoding to dense tiles."""
    m, k = job.x.shape
    bias, residual, has_bias, has_residual = job.extras()
    in_parts = config["SPLITS"] * job.halves > 1
    out, part = job.buffers(config["SPLITS"], in_parts)
    config = dict(config)
    warps = config.pop("num_warps")
    programs = job.halves * -(-job.tiles // config["R"])
    portable_kernel[(-(-m // config["BLOCK_M"]), programs, config["SPLITS"])](
        job.x.contiguous(), job.values, job.meta, bias, residual, part, m, job.n, k, job.tiles, job.steps,
        HALVES=job.halves, HAS_BIAS=has_bias, HAS_RESIDUAL=has_residual,
        **config, PARTS=in_parts, PRMT=is_nvidia(job.x.device), UPCAST=interpreting(), num_warps=warps,
    )  # fmt: skip
    return job.combined(out, part)


def portable_default(job: Sp24Job) -> Config:
    """128 rows of weights a program: with fewer, taking the input apart costs too much for each."""
    block_m = min(32, max(16, tuning.power_of_two(len(job.x))))
    programs = job.halves * -(-job.tiles // 8) * -(-len(job.x) // block_m)
    splits = tuning.splits_for(programs, min(8, max(1, job.steps // 8)))
    return {"R": 8, "C": 1, "BLOCK_M": block_m, "SPLITS": splits, "num_warps": 4}


def portable_cuts(job: Sp24Job) -> Iterator[Config]:
    """Tiles and warps that are worth trying on a card."""
    for r, c in product((4, 8), (1, 2)):
        yield portable_default(job) | {"R": r, "C": c}


def unpacked(weight: Fragments) -> Tensor:
    """The dense matrix [N, K], K a multiple of 8, for products with many tokens."""
    (n, k), (tiles, steps) = weight.shape, weight.meta.shape[:2]
    out = torch.empty(n, k, dtype=weight.dtype, device=weight.values.device)
    r, c = 4, 2
    with on_device(out):
        unpack_kernel[(-(-tiles // r), -(-steps // c))](
            weight.values, weight.meta, out.view(torch.int64), n, k, tiles, steps, R=r, C=c
        )
    return out
