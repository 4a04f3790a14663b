"""Put the kernels into a model where they win: each shape of layer is timed once, against the dense layer.

Linear layers with 2:4 weights become `Sp24Linear`; gated MLPs (`gate_proj`, `up_proj`, `down_proj`, SiLU)
become `Sp24MLP`, or `ShrunkMLP` where they are dense. What does not win by `min_gain` at one token stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from llmprune_kernels.device import why_not
from llmprune_kernels.errors import KernelError
from llmprune_kernels.modules import Inference, ShrunkMLP, Sp24Linear, Sp24MLP, is_24

TYPES = (torch.float16, torch.bfloat16)
CLOSE = 0.02
"""Both layers round to 16 bits a few times; a layer that computes something else is further off than this."""


@dataclass
class Choice:
    """What became of all layers of one shape."""

    layer: str
    shape: str
    count: int
    dense_us: float
    kernel_us: float
    error: float
    """How far the kernel's output is from the dense layer's, relative to its norm."""
    taken: bool

    @property
    def gain(self) -> float:
        """How many times as fast as the dense layer, at one token."""
        return self.dense_us / self.kernel_us


@dataclass
class Choices:
    """What was chosen for a model, and why nothing else."""

    reason: str = ""
    """Why every layer stays dense, if it does."""
    rows: list[Choice] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.rows:
            return f"kernels: every layer stays dense: {self.reason}"
        lines = [f"{'layer':<12}{'shape':<16}{'layers':>7}{'dense':>10}{'kernel':>10}{'gain':>7}  chosen"]
        for row in self.rows:
            times = f"{row.dense_us:>7.1f} us{row.kernel_us:>7.1f} us{row.gain:>6.2f}x"
            why = "" if row.error < CLOSE else " (it computes something else)"
            chosen = row.layer if row.taken else f"dense{why}"
            lines.append(f"{row.layer:<12}{row.shape:<16}{row.count:>7}{times}  {chosen}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Candidate:
    """A place in the model and what could stand there."""

    parent: nn.Module
    name: str
    kind: type[Inference]
    build: Callable[[], Inference]
    shape: tuple[int, ...]

    @property
    def old(self) -> nn.Module:
        """What stands there now."""
        found: nn.Module = getattr(self.parent, self.name)
        return found


def accelerate(
    model: nn.Module, *, prefill: Literal["single", "dual"] = "single", min_gain: float = 1.05
) -> Choices:
    """Replace layers in place by kernels that are faster on this GPU, and say what was chosen.

    Args:
        model: in evaluation mode, on one GPU, in float16 or bfloat16; otherwise nothing is replaced.
        prefill: `single` keeps one copy of every 2:4 weight, 0.5625 of the dense bytes, and unpacks it for
            many tokens; `dual` adds cuSPARSELt's, 1.125 of the dense bytes in all, used where it is faster.
        min_gain: how many times as fast as the dense layer one must be to be taken.

    Raises:
        KernelError: there is no such way of prefill.
    """
    if prefill not in ("single", "dual"):
        raise KernelError(f"prefill is 'single' or 'dual', not {prefill!r}")
    if reason := _why_dense(model):
        return Choices(reason)
    chosen: dict[tuple[type, tuple[int, ...]], Choice] = {}
    for candidate in list(_candidates(model)):
        key = candidate.kind, candidate.shape
        new = candidate.build() if key not in chosen or chosen[key].taken else None
        if key not in chosen:
            assert new is not None
            chosen[key] = _timed(candidate, new, min_gain)
        chosen[key].count += 1
        if chosen[key].taken and new is not None:
            setattr(candidate.parent, candidate.name, new.eval())
            if prefill == "dual" and isinstance(new, Sp24Linear | Sp24MLP):
                new.keep_second_copy()
    return Choices("no layer has a form that a kernel knows", [*chosen.values()])


def _why_dense(model: nn.Module) -> str | None:
    weights = [module.weight for module in model.modules() if type(module) is nn.Linear]
    if model.training:
        return "the model is in training mode, and the kernels are for inference"
    if not weights:
        return "it has no linear layers"
    devices = {weight.device for weight in weights}
    if len(devices) > 1:
        return f"its layers are spread over {len(devices)} devices"
    if reason := why_not(devices.pop()):
        return reason
    if weights[0].dtype not in TYPES:
        return f"the kernels compute in float16 or bfloat16, and the model is in {weights[0].dtype}"
    return None


def _candidates(model: nn.Module) -> Iterator[Candidate]:
    """Gated MLPs as a whole, then the linear layers outside of them that are 2:4."""
    inside: set[int] = set()
    places: list[tuple[nn.Module, str, Any]]
    places = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    for parent, name, child in places:
        if not is_gated_mlp(child):
            continue
        inside |= {id(part) for part in (child.gate_proj, child.up_proj)}
        shape = tuple(child.gate_proj.weight.shape)
        if is_24(child.gate_proj.weight) and is_24(child.up_proj.weight):
            inside.add(id(child.down_proj))
            yield Candidate(parent, name, Sp24MLP, partial(Sp24MLP.from_mlp, child), shape)
        elif not is_24(child.down_proj.weight):
            inside.add(id(child.down_proj))
            yield Candidate(parent, name, ShrunkMLP, partial(ShrunkMLP.from_mlp, child), shape)
    for parent, name, child in places:
        if type(child) is nn.Linear and id(child) not in inside and is_24(child.weight):
            shape = tuple(child.weight.shape)
            yield Candidate(parent, name, Sp24Linear, partial(Sp24Linear.from_linear, child), shape)


def is_gated_mlp(module: Any) -> bool:
    """Whether a module computes down(silu(gate(x)) * up(x)) and nothing else, without biases inside."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(part) is nn.Linear for part in parts):
        return False
    biased = module.gate_proj.bias is not None or module.up_proj.bias is not None
    activation = next((getattr(module, n) for n in ("act_fn", "activation_fn") if hasattr(module, n)), None)
    others = [child for child in module.children() if child not in (*parts, activation)]
    return "silu" in type(activation).__name__.lower() and not others and not biased


def _timed(candidate: Candidate, new: Inference, min_gain: float) -> Choice:
    """Both layers on one token, in CUDA graphs: as in a decoder that its host does not hold up."""
    from triton.testing import do_bench_cudagraph

    weight = next(candidate.old.parameters())
    columns = candidate.shape[-1]
    x = torch.randn(1, columns, dtype=weight.dtype, device=weight.device)
    new.eval()
    with torch.no_grad(), torch.cuda.device(weight.device):
        wanted = candidate.old(x).float()
        error = float((new(x).float() - wanted).norm() / wanted.norm())
        dense, kernel = (1000 * do_bench_cudagraph(partial(layer, x)) for layer in (candidate.old, new))
    shape = " x ".join(map(str, candidate.shape))
    taken = error < CLOSE and dense >= min_gain * kernel
    return Choice(candidate.kind.__name__, shape, 0, dense, kernel, error, taken)
