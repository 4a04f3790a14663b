"""Layers that compute with the kernels, in the place of linear layers and gated MLPs; for inference only.

Letters used in shapes: N outputs, K inputs, I channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from llmprune_kernels import ops
from llmprune_kernels.errors import KernelError
from llmprune_kernels.formats.fragments import Fragments
from llmprune_kernels.formats.sp24 import Sp24
from llmprune_kernels.sp24.prefill import SecondCopy

WIDTH = 64
"""Channels of a shrunk MLP are stored in multiples of this: rows of 128 bytes, whole tiles."""


class Inference(nn.Module, ABC):
    """A layer for inference only, of one 16-bit type; it is saved as the dense layers that it stands for."""

    def __init__(self, dtype: torch.dtype, in_features: int) -> None:
        super().__init__()
        self.dtype, self.in_features = dtype, in_features

    def _rows(self, x: Tensor) -> Tensor:
        """x [..., K] as a matrix, if it can be computed with."""
        if self.training:
            raise KernelError(
                f"{type(self).__name__} is for inference, and the model is in training mode; call "
                "model.eval(), or load it with kernels='none' to train it"
            )
        if x.dtype != self.dtype:
            raise KernelError(f"{type(self).__name__} was packed in {self.dtype}, and its input is {x.dtype}")
        if x.shape[-1] != self.in_features:
            raise KernelError(f"{type(self).__name__} takes {self.in_features} inputs, not {x.shape[-1]}")
        return x.reshape(-1, self.in_features)

    @abstractmethod
    def dense(self) -> dict[str, nn.Linear]:
        """The dense layers that this one stands for, by the names they had; "" where it has their place."""

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if change(torch.empty(0, dtype=self.dtype)).dtype != self.dtype:
            raise KernelError(
                f"{type(self).__name__} was packed in {self.dtype} and keeps that type; "
                "load the model in the type you want"
            )
        return super()._apply(change, recurse)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        for name, linear in self.dense().items():
            for key, tensor in linear.state_dict().items():
                destination[".".join(filter(None, (prefix.rstrip("."), name, key)))] = tensor

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        raise KernelError(
            f"{prefix.rstrip('.')} computes with packed weights, which cannot be replaced; load the weights "
            "into the model before its kernels are chosen"
        )


class Sp24Linear(Inference):
    """A linear layer with two non-zeros in every four inputs, kept once, in 9/16 of the dense bytes."""

    values: Tensor
    meta: Tensor
    bias: Tensor | None

    def __init__(self, weight: Fragments, bias: Tensor | None) -> None:
        super().__init__(weight.dtype, weight.shape[1])
        self.out_features = weight.shape[0]
        self.register_buffer("values", weight.values, persistent=False)
        self.register_buffer("meta", weight.meta, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.second: SecondCopy | None = None

    @property
    def weight(self) -> Tensor:
        """The dense weight, unpacked: models look at it now and then."""
        return self.dense()[""].weight

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Sp24Linear:
        """Pack a layer's weight.

        Raises:
            KernelError: the weight is not 2:4, or has no 16-bit type.
        """
        return cls(packed(linear.weight), None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        rows = self._rows(x)
        if self.second is not None and len(rows) > ops.MOST_TOKENS and self.second.wins(len(rows)):
            out = self.second(rows, self.bias)
        else:
            out = ops.sp24_linear(rows, self.values, self.meta, self.bias, None, self.out_features)
        return out.reshape(*x.shape[:-1], self.out_features)

    def keep_second_copy(self) -> None:
        """Hold the weight in cuSPARSELt's order too, if that is faster for many tokens."""
        self.second = SecondCopy.if_it_wins(self.weight.detach(), self.forward)

    def dense(self) -> dict[str, nn.Linear]:
        """Itself."""
        weight = Fragments(self.values, self.meta, (self.out_features, self.in_features), self.dtype)
        return {"": plain(weight.unpack().to_dense(), self.bias)}

    def extra_repr(self) -> str:
        """As of nn.Linear."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class Sp24MLP(Inference):
    """A gated MLP whose gate and up are 2:4, read in one pass; `down` is any layer."""

    values: Tensor
    meta: Tensor

    def __init__(self, gate: Fragments, up: Fragments, down: nn.Module) -> None:
        super().__init__(gate.dtype, gate.shape[1])
        self.channels = gate.shape[0]
        self.register_buffer("values", torch.cat((gate.values, up.values)), persistent=False)
        self.register_buffer("meta", torch.cat((gate.meta, up.meta)), persistent=False)
        self.down_proj = down
        self.second: SecondCopy | None = None

    @classmethod
    def from_mlp(cls, mlp: Any) -> Sp24MLP:
        """Pack gate and up, and down if it is 2:4 too.

        Raises:
            KernelError: gate or up is not 2:4, or has no 16-bit type.
        """
        down = Sp24Linear.from_linear(mlp.down_proj) if is_24(mlp.down_proj.weight) else mlp.down_proj
        return cls(packed(mlp.gate_proj.weight), packed(mlp.up_proj.weight), down)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        rows = self._rows(x)
        if self.second is not None and len(rows) > ops.MOST_TOKENS and self.second.wins(len(rows)):
            gate, up = self.second(rows).chunk(2, -1)
            hidden = silu(gate) * up
        else:
            hidden = ops.sp24_swiglu(rows, self.values, self.meta, self.channels)
        out: Tensor = self.down_proj(hidden)
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def keep_second_copy(self) -> None:
        """Hold gate and up in cuSPARSELt's order too, if that is faster for many tokens; and down."""
        weight = torch.cat([linear.weight.detach() for linear in self.dense().values()])
        first = partial(ops.sp24_swiglu, values=self.values, meta=self.meta, channels=self.channels)
        self.second = SecondCopy.if_it_wins(weight, first)
        if isinstance(self.down_proj, Sp24Linear):
            self.down_proj.keep_second_copy()

    def dense(self) -> dict[str, nn.Linear]:
        """Gate and up."""
        halves = zip(self.values.chunk(2), self.meta.chunk(2), strict=True)
        shape = self.channels, self.in_features
        gate, up = (Fragments(v, m, shape, self.dtype).unpack().to_dense() for v, m in halves)
        return {"gate_proj": plain(gate), "up_proj": plain(up)}


class ShrunkMLP(Inference):
    """A gated MLP of any width, stored with zero channels up to a multiple of WIDTH, which changes nothing.

    silu(0) * 0 is 0, and the columns of `down` for it are 0 too; but rows of 7713 numbers cannot be read 16
    bytes at a time, and rows of 7744 can.
    """

    gate: Tensor
    up: Tensor
    down: Tensor
    bias: Tensor | None

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, bias: Tensor | None) -> None:
        super().__init__(gate.dtype, gate.shape[1])
        self.channels = len(gate)
        if missing := -self.channels % WIDTH:  # otherwise the weights are used where they are
            gate, up, down = (
                pad(gate, (0, 0, 0, missing)),
                pad(up, (0, 0, 0, missing)),
                pad(down, (0, missing)),
            )
        self.register_buffer("gate", gate, persistent=False)
        self.register_buffer("up", up, persistent=False)
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    @classmethod
    def from_mlp(cls, mlp: Any) -> ShrunkMLP:
        """Take over an MLP's weights."""
        down = mlp.down_proj
        bias = None if down.bias is None else down.bias.detach()
        return cls(mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach(), down.weight.detach(), bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        hidden = ops.swiglu(self._rows(x), self.gate, self.up)
        out = ops.linear_bias_residual(hidden, self.down, self.bias, None)
        return out.reshape(*x.shape[:-1], len(self.down))

    def dense(self) -> dict[str, nn.Linear]:
        """Gate, up and down, without the channels that were added."""
        gate, up, down = self.gate[: self.channels], self.up[: self.channels], self.down[:, : self.channels]
        return {
            "gate_proj": plain(gate),
            "up_proj": plain(up),
            "down_proj": plain(down.contiguous(), self.bias),
        }


def is_24(weight: Tensor) -> bool:
    """Whether no group of four columns has more than two non-zeros."""
    if weight.ndim != 2 or weight.shape[1] % 8 or not weight.numel():
        return False
    for rows in weight.split(1024):  # a head of 128,000 rows is not to be copied
        if int((rows.reshape(len(rows), -1, 4) != 0).sum(-1, dtype=torch.uint8).max()) > 2:
            return False
    return True


def stored_bytes(model: nn.Module) -> int:
    """What a model's weights take, packed ones as they are packed."""
    held = [
        t for m in model.modules() if isinstance(m, Inference | SecondCopy) for t in m.buffers(recurse=False)
    ]
    return sum(tensor.nbytes for tensor in (*model.parameters(), *held))


def packed(weight: Tensor) -> Fragments:
    """A weight in the order in which it is computed with."""
    return Fragments.pack(Sp24.from_dense(weight.detach()))


def plain(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer around tensors that exist."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
