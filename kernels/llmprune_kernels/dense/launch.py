"""Start the dense kernels: cut up how, and in what buffers.

Letters used in shapes: M tokens, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from llmprune_kernels import tuning
from llmprune_kernels.dense.product import product_kernel
from llmprune_kernels.device import interpreting, on_device
from llmprune_kernels.epilogue import combine_kernel
from llmprune_kernels.tuning import Config


@dataclass(frozen=True)
class Job:
    """One product: x [M, K] times weight [N, K], or silu(x weight^T) * (x up^T) with `up` [N, K]."""

    x: Tensor
    weight: Tensor
    up: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None

    @property
    def halves(self) -> int:
        """How many matrices are read."""
        return 1 if self.up is None else 2


def run(job: Job) -> Tensor:
    """The product [M, N]."""
    shape = (len(job.x), job.halves * len(job.weight), job.x.shape[1])
    name = f"dense_{job.halves}"
    with on_device(job.x):
        config = tuning.pick(
            name,
            shape,
            job.x.device,
            default(job),
            lambda: candidates(job),
            lambda config: start(job, config),
        )
        return start(job, config)


def start(job: Job, config: Config) -> Tensor:
    """Run the kernel with a configuration."""
    (m, k), n = job.x.shape, len(job.weight)
    config = dict(config)
    warps, stages = config.pop("num_warps"), config.pop("num_stages")
    # The interpreter cuts bits off where a GPU rounds to 16 bits, so there the kernel writes float32.
    out = torch.empty(m, n, dtype=torch.float32 if interpreting() else job.x.dtype, device=job.x.device)
    part = (
        out
        if config["SPLITS"] == 1
        else out.new_empty(config["SPLITS"], job.halves, m, n, dtype=torch.float32)
    )
    up, bias, residual = (job.x if term is None else term for term in (job.up, job.bias, job.residual))
    extras = job.bias is not None, job.residual is not None
    product_kernel[(-(-m // config["BLOCK_M"]), -(-n // config["BLOCK_N"]), config["SPLITS"])](
        job.x.contiguous(), job.weight, up, bias, residual, part, m, n, k,
        HALVES=job.halves, HAS_BIAS=extras[0], HAS_RESIDUAL=extras[1],
        **config, UPCAST=interpreting(), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if part is not out:
        combine_kernel[(-(-n // 512), m)](
            part, bias, residual, out, m, n, job.halves, *extras, len(part), BLOCK=512
        )
    return out.to(job.x.dtype)


def default(job: Job) -> Config:
    """Narrow tiles: this kernel is for few tokens, where reading the weight is all the work."""
    block_m = max(16, tuning.power_of_two(len(job.x)))
    programs = -(-len(job.weight) // 64)
    splits = tuning.splits_for(programs, min(8, max(1, job.x.shape[1] // 1024)))
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": 64,
        "BLOCK_K": 128,
        "SPLITS": splits,
        "num_warps": 4,
        "num_stages": 3,
    }


def candidates(job: Job) -> Iterator[Config]:
    """What is worth trying on a card."""
    base = default(job)
    for block_n, block_k, splits in product((32, 64, 128), (64, 128, 256), (1, 2, 4, 8)):
        for stages, warps in product((3, 4, 5), (4, 8)):
            cut = {"BLOCK_N": block_n, "BLOCK_K": block_k, "SPLITS": splits}
            yield base | cut | {"num_stages": stages, "num_warps": warps}
