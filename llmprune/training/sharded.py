"""FSDP2: every process holds a share of each parameter that trains, as `accelerate launch --use_fsdp` asks.

Accelerate shards the student and the optimizer, and gathers a block's weights for its forward and backward
pass. What reads or changes single weights sees the share (`local`), or waits for all of them (`whole`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from llmprune import ranks
from llmprune.errors import JobError, RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers

WAITING = 3  # copies in float32: the student as it came, the one that will be shared, and its best state


def asked() -> bool:
    """Whether the launcher asked for it, and there are processes to share among."""
    return ranks.count() > 1 and _is_set("ACCELERATE_USE_FSDP")


def require() -> None:
    """Refuse other ways to shard a student, and settle what accelerate leaves open.

    Raises:
        RequestError: DeepSpeed was asked, or the first FSDP.
    """
    other = "DeepSpeed" if _is_set("ACCELERATE_USE_DEEPSPEED") else ""
    if asked() and os.environ.get("FSDP_VERSION", "1") != "2":
        other = "FSDP 1"
    if other:
        raise RequestError(
            "ranks",
            f"accelerate was asked for {other}; launch with --multi_gpu, or with --use_fsdp --fsdp_version 2",
        )
    if asked():
        # Or only the first process would read the checkpoints, the dense model's too.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        os.environ.setdefault("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")


def require_host(parameters: int) -> None:
    """Refuse processes whose copies of a model do not fit into their host's memory.

    Raises:
        JobError: it says how much they take.
    """
    needed = WAITING * parameters * torch.float32.itemsize * ranks.neighbours()
    free = psutil.virtual_memory().available
    if needed > free:
        raise JobError(
            f"{ranks.neighbours()} processes keep {WAITING} copies of the model each in host memory, "
            f"{needed / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free; start fewer on this machine"
        )


def share(accelerator: Any, student: Any, teacher: Any | None) -> None:
    """Shard a teacher, which does not train; prepare to shard a student block by block, its gradients added
    in float32.

    Raises:
        RequestError: accelerate shards nothing on this device.
    """
    from accelerate.utils import fsdp2_prepare_model

    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        raise RequestError("ranks", "FSDP was asked, and accelerate shards none on a CPU; launch without it")
    if plugin.transformer_cls_names_to_wrap is None:
        # By default classes of other parts, too, which a model need not have.
        blocks = Anatomy(student, LinearLayers()).blocks
        plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks})
    if policy := plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32)
    if teacher is not None:
        fsdp2_prepare_model(accelerator, teacher)


def release(model: nn.Module) -> None:
    """Drop what a forward pass has gathered and kept, or changes of the share would not be seen."""
    if not asked():
        return
    from torch.distributed.fsdp import FSDPModule  # takes a second

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a parameter: its own memory, in which changes count."""
    from torch.distributed.tensor import DTensor

    found: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return found


def whole(tensor: Tensor) -> Tensor:
    """All of a parameter; every process has to ask."""
    from torch.distributed.tensor import DTensor

    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found


def place(parameter: Tensor, value: Tensor) -> None:
    """Set a parameter to what is given whole in every process."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.data.copy_(value)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")
