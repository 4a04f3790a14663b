"""Start the dense kernels: cut up how, and in what buffers.

Letters used in shapes: M tokens, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from llmprune_kernels import tuning
from llmprune_kernels.dense.product import product_kernel
from llmprune_kernels.device import interpreting, on_device
from llmprune_kernels.job import Job
from llmprune_kernels.tuning import Config


@dataclass(frozen=True, kw_only=True)
class DenseJob(Job):
    """A product with a dense weight, or with a gate and `up` at once."""

    weight: Tensor
    """[N, K]."""
    up: Tensor | None = None
    """[N, K], where there are two halves."""


def run(job: DenseJob) -> Tensor:
    """The product [M, N]."""
    with on_device(job.x):
        config = tuning.pick(
            f"dense_{job.halves}", job.shape, job.x.device, default(job), (cuts, shares),
            lambda config: start(job, config),
        )  # fmt: skip
        return start(job, config)


def start(job: DenseJob, config: Config) -> Tensor:
    """Run the kernel with a configuration."""
    m, k = job.x.shape
    config = dict(config)
    warps, stages = config.pop("num_warps"), config.pop("num_stages")
    out, part = job.buffers(config["SPLITS"], config["SPLITS"] > 1)
    bias, residual, has_bias, has_residual = job.extras()
    product_kernel[(-(-m // config["BLOCK_M"]), -(-job.n // config["BLOCK_N"]), config["SPLITS"])](
        job.x.contiguous(), job.weight, job.weight if job.up is None else job.up, bias, residual, part,
        m, job.n, k,
        HALVES=job.halves, HAS_BIAS=has_bias, HAS_RESIDUAL=has_residual,
        **config, UPCAST=interpreting(), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return job.combined(out, part)


def default(job: DenseJob) -> Config:
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


def cuts(best: Config) -> Iterator[Config]:
    """Tiles and warps that are worth trying on a card."""
    for block_n, block_k, warps in product((32, 64, 128), (64, 128, 256), (4, 8)):
        yield best | {"BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps}


def shares(best: Config) -> Iterator[Config]:
    """Ways to share out the inputs, and stages of the pipeline, that are worth trying on a card."""
    for splits, stages in product((1, 2, 4, 8), (3, 4, 5)):
        yield best | {"SPLITS": splits, "num_stages": stages}
