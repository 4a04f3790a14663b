"""The experts of a mixture: transformers keeps those of a block fused in one module, [experts, ...]."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig

ROUTERS = {"gate", "router", "shared_expert_gate"}
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k", "moe_top_k")


def holds_experts(module: nn.Module) -> bool:
    """Whether a module holds fused experts of the form that transformers' own kernels compute."""
    return hasattr(module, "is_transposed") and isinstance(getattr(module, "down_proj", None), nn.Parameter)


def experts_of(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a block that hold experts, with their names in it."""
    return ((name, module) for name, module in block.named_modules() if holds_experts(module))


def is_mixture(block: nn.Module) -> bool:
    """Whether a block has experts."""
    return any(map(holds_experts, block.modules()))


def projections(experts: nn.Module) -> tuple[str, str]:
    """The parameters of the first and the last matrix of every expert, in the order of computation."""
    return "gate_up_proj" if experts.has_gate else "up_proj", "down_proj"


def count(experts: nn.Module) -> int:
    """How many experts a module holds."""
    number: int = experts.get_parameter("down_proj").shape[0]
    return number


def routes(name: str) -> bool:
    """Whether a layer of a block with experts chooses among them, or weighs a shared one."""
    return not ROUTERS.isdisjoint(name.split("."))


def chosen(config: PreTrainedConfig) -> int:
    """Experts that compute each token; 1 if the config does not say."""
    return next((value for name in CHOSEN if (value := getattr(config, name, None))), 1)


def outputs(experts: nn.Module, config: PreTrainedConfig) -> int:
    """Outputs of all matrices of the experts that compute one token, with what is between them."""
    first, last = (experts.get_parameter(leaf).shape[1:] for leaf in projections(experts))
    if experts.is_transposed:
        first, last = first[::-1], last[::-1]
    return chosen(config) * int(first[0] + last[1] + last[0])
