"""Put the kernels into a model where they win: each shape of layer is timed once, against the dense layer.

Linear layers with 2:4 weights become `Sp24Linear`; gated MLPs (`gate_proj`, `up_proj`, `down_proj`, SiLU)
become `Sp24MLP`, or `ShrunkMLP` where they are dense. What is not faster stays, as does what computes
anything else.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmprune_kernels.closeness import CLOSE, distance
from llmprune_kernels.device import why_not
from llmprune_kernels.errors import KernelError
from llmprune_kernels.modules import Inference, ShrunkMLP, Sp24Linear, Sp24MLP, is_24

TYPES = (torch.float16, torch.bfloat16)
SCALES = (1.0, 10.0, 100.0)
"""Of the inputs on which layers are compared: a limit on large values shows with the larger ones."""
COMPARED = (4, 64, 200)
"""Numbers of tokens on which layers are compared: each takes another way through the kernels."""
MOST_TOKENS = 64
"""Tokens at a time with which a kernel must not lose, unless another number is asked."""
NO_LOSS = 0.98


@dataclass
class Choice:
    """What became of all layers of one shape."""

    layer: str
    shape: str
    times: list[tuple[float, float]]
    """Microseconds of the dense layer and of the kernel, at one token and at the most; none if it failed."""
    min_gain: float
    count: int = 0
    notes: list[str] = field(default_factory=list)
    """Why single layers of this shape stay dense, or have one copy where two were asked."""

    @property
    def gains(self) -> list[float]:
        """How many times as fast as the dense layer, at one token and at the most."""
        return [dense / ours for dense, ours in self.times]

    @property
    def wins(self) -> bool:
        """Whether layers of this shape are to be replaced."""
        return bool(self.times) and self.gains[0] >= self.min_gain and min(self.gains) >= NO_LOSS

    def note(self, line: str) -> None:
        """Say something of single layers, once."""
        if line not in self.notes:
            self.notes.append(line)

    def __str__(self) -> str:
        chosen = self.layer if self.wins else "dense"
        times = f"{'not timed':>36}"
        if self.times:
            dense, ours = self.times[0]
            times = f"{dense:>7.1f} us{ours:>7.1f} us{self.gains[0]:>6.2f}x{self.gains[-1]:>8.2f}x"
        line = f"{self.layer:<12}{self.shape:<16}{self.count:>7}{times}  {chosen}"
        return "\n".join([line, *(f"    {note}" for note in self.notes)])


@dataclass
class Choices:
    """What was chosen for a model, and why nothing else."""

    reason: str = ""
    """Why every layer stays dense, if it does."""
    rows: list[Choice] = field(default_factory=list)
    most: int = MOST_TOKENS
    """The most tokens that were timed."""

    def __str__(self) -> str:
        if not self.rows:
            return f"kernels: every layer stays dense: {self.reason}"
        head = f"{'layer':<12}{'shape':<16}{'layers':>7}{'dense':>10}{'kernel':>10}{'gain':>7}"
        head += f"{f'at {self.most}':>9}  chosen"
        return "\n".join([head, *map(str, self.rows)])


Kind = type[Sp24Linear | Sp24MLP | ShrunkMLP]
Key = tuple[Kind, tuple[int, ...], bool]
Chosen = dict[Key, Choice]


@dataclass(frozen=True)
class Terms:
    """On what terms a kernel is taken: see `accelerate`."""

    prefill: str
    min_gain: float
    most: int


@dataclass(frozen=True)
class Candidate:
    """A place in the model and what could stand there."""

    parent: nn.Module
    name: str
    kind: Kind

    @property
    def old(self) -> Any:
        """What stands there now."""
        return getattr(self.parent, self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, or of the gate's."""
        weight = self.old.weight if self.kind is Sp24Linear else self.old.gate_proj.weight
        return tuple(weight.shape)

    @property
    def key(self) -> Key:
        """What layers have alike that take the same time; an MLP's `down` may be 2:4 or not."""
        return self.kind, self.shape, self.kind is Sp24MLP and is_24(self.old.down_proj.weight)

    def build(self) -> Sp24Linear | Sp24MLP | ShrunkMLP:
        """What could stand there."""
        make = self.kind.from_linear if issubclass(self.kind, Sp24Linear) else self.kind.from_mlp
        made: Sp24Linear | Sp24MLP | ShrunkMLP = make(self.old).eval()
        return made


def accelerate(
    model: nn.Module,
    *,
    prefill: Literal["single", "dual"] = "single",
    min_gain: float = 1.05,
    most: int = MOST_TOKENS,
) -> Choices:
    """Replace layers in place by kernels that are faster on this GPU, and say what was chosen.

    Every layer is compared with what would replace it, and stays if they differ or if the kernel fails. The
    parameters of a model that got a kernel ask for no gradient any more.

    Args:
        model: in evaluation mode, on one GPU, in float16 or bfloat16; otherwise nothing is replaced.
        prefill: `single` keeps one copy of every 2:4 weight, 0.5625 of the dense bytes, and unpacks it for
            many tokens; `dual` adds cuSPARSELt's, 1.125 of the dense bytes in all, where it is faster.
        min_gain: how many times as fast as the dense layer one must be, at one token, to be taken.
        most: the number of tokens at a time with which it must not be slower: 1 if only one sequence is ever
            decoded, or the largest batch.

    Raises:
        KernelError: there is no such way of prefill, or number of tokens.
    """
    if prefill not in ("single", "dual"):
        raise KernelError(f"prefill is 'single' or 'dual', not {prefill!r}")
    if most < 1:
        raise KernelError(f"most is a number of tokens, 1 or more, not {most}")
    if reason := _why_dense(model):
        return Choices(reason)
    chosen: Chosen = {}
    _descend(model, chosen, Terms(prefill, min_gain, most))
    if any(isinstance(module, Inference) for module in model.modules()):
        model.requires_grad_(False)  # a compiler would trace their backward, which there is not
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # one for each stream on which something was timed
    return Choices("no layer has a form that a kernel knows", [*chosen.values()], most)


def _descend(module: nn.Module, chosen: Chosen, terms: Terms) -> None:
    """Consider what lies in a module, then what lies in that: nothing replaced is held on to."""
    for name in [name for name, _ in module.named_children()]:
        if kind := _kind(getattr(module, name)):
            _consider(Candidate(module, name, kind), chosen, terms)
        _descend(getattr(module, name), chosen, terms)


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
    if not any(weight.dtype in TYPES for weight in weights):
        return f"the kernels compute in float16 or bfloat16, and the model is in {weights[0].dtype}"
    return None


def _kind(module: Any) -> Kind | None:
    """What could stand in the place of a module."""
    if is_gated_mlp(module):
        gate, up, down = (is_24(part.weight) for part in (module.gate_proj, module.up_proj, module.down_proj))
        return Sp24MLP if gate and up else None if gate or up or down else ShrunkMLP
    plain = _is_plain(module) and module.weight.dtype in TYPES
    return Sp24Linear if plain and is_24(module.weight) else None


def is_gated_mlp(module: Any) -> bool:
    """Whether a module looks as if it computed down(silu(gate(x)) * up(x)), without biases inside."""
    parts: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(map(_is_plain, parts)) or not all(part.weight.dtype in TYPES for part in parts):
        return False
    activation = next((getattr(module, n) for n in ("act_fn", "activation_fn") if hasattr(module, n)), None)
    others = [child for child in module.children() if child not in (*parts, activation)]
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    biased = module.gate_proj.bias is not None or module.up_proj.bias is not None
    return "silu" in type(activation).__name__.lower() and not (others or own or biased or _hooked(module))


def _is_plain(module: Any) -> bool:
    """Whether a layer is a linear layer and nothing has been added to it."""
    return type(module) is nn.Linear and not _hooked(module)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


def _consider(candidate: Candidate, chosen: Chosen, terms: Terms) -> None:
    """Replace a layer if its shape wins and it computes the same; its shape is timed when it is first met."""
    key = candidate.key
    first = key not in chosen
    if first:
        chosen[key] = Choice(
            candidate.kind.__name__, " x ".join(map(str, candidate.shape)), [], terms.min_gain
        )
    choice = chosen[key]
    choice.count += 1
    if not first and not choice.wins:
        return
    try:
        new = candidate.build()
        why = _difference(candidate.old, new, candidate.shape[-1])
        if first:
            choice.times = [_times(candidate.old, new, m, candidate.shape[-1]) for m in (1, terms.most)]
        if choice.wins and not why:
            setattr(candidate.parent, candidate.name, new)
    except Exception as error:  # a kernel that cannot do this layer must not cost the user the model
        why = _told(error)
    if why:
        choice.note(f"dense: {why}")
    elif choice.wins and terms.prefill == "dual" and not isinstance(new, ShrunkMLP):
        try:
            new.keep_second_copy()
        except Exception as error:  # the one copy computes the same
            choice.note(f"one copy: {_told(error)}")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@torch.no_grad()
def _difference(old: nn.Module, new: Inference, columns: int) -> str:
    """How a layer computes something else than what would replace it, or nothing."""
    weight = next(old.parameters())
    generator = torch.Generator(weight.device).manual_seed(0)
    for scale, tokens in product(SCALES, COMPARED):
        x = scale * torch.randn(tokens, columns, device=weight.device, generator=generator)
        wanted, found = (layer(x.to(weight.dtype)) for layer in (old, new))
        if scale > SCALES[0] and not wanted.isfinite().all():
            continue  # float16 ends at 65504 for both
        error = distance(found, wanted)
        if not error < CLOSE and not torch.equal(found, wanted):
            return f"it computes something else (by {error:.2g} of its output)"
    return ""


@torch.no_grad()
def _times(old: nn.Module, new: Inference, m: int, columns: int) -> tuple[float, float]:
    """Microseconds of both layers, with as many copies of their weights as exceed the cache."""
    weight = next(old.parameters())
    x = torch.randn(m, columns, dtype=weight.dtype, device=weight.device)
    dense, ours = (_microseconds(layer, x) for layer in (old, new))
    return dense, ours


def _microseconds(layer: nn.Module, x: Tensor) -> float:
    """The time of one call in a CUDA graph: as in a decoder that its host does not hold up."""
    from triton.testing import do_bench_cudagraph

    size = sum(t.nbytes for t in (*layer.parameters(), *layer.buffers()))
    cache = torch.cuda.get_device_properties(x.device).L2_cache_size
    copies = [layer, *(copy.deepcopy(layer) for _ in range(2 * cache // size))]

    def run() -> None:
        for one in copies:
            one(x)

    with torch.cuda.device(x.device):
        return 1000 * float(do_bench_cudagraph(run)) / len(copies)
