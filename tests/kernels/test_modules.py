"""Layers of kernels, on the CPU: the same outputs in fewer bytes, and no training."""

from __future__ import annotations

import pytest
import torch
from llmprune_kernels import modules
from llmprune_kernels.errors import KernelError
from llmprune_kernels.modules import ShrunkMLP, Sp24Linear, Sp24MLP
from torch import nn

from tests import tiny
from tests.kernels.matrices import error, normal, sparse
from tests.kernels.models import BF16


def test_a_linear_layer_computes_the_same_in_nine_sixteenths() -> None:
    linear = nn.Linear(128, 48, dtype=BF16)
    linear.weight.data *= sparse(48, 128) != 0
    layer = Sp24Linear.from_linear(linear).eval()
    x = normal(2, 3, 128, dtype=BF16)
    assert error(layer(x), linear(x).detach()) < 4e-3
    assert modules.stored_bytes(layer) - linear.bias.nbytes == 9 / 16 * linear.weight.nbytes


@pytest.mark.parametrize("channels", [48, 100])
def test_mlps_compute_the_same(channels: int) -> None:
    mlp = tiny.model("llama", BF16).model.layers[0].mlp
    for name, shape in (
        ("gate_proj", (channels, 32)),
        ("up_proj", (channels, 32)),
        ("down_proj", (32, channels)),
    ):
        layer = getattr(mlp, name)
        layer.weight = nn.Parameter(normal(*shape, dtype=BF16))
        if name == "down_proj":
            layer.bias = nn.Parameter(normal(32, dtype=BF16))
    x = normal(3, 32, dtype=BF16)
    shrunk, nothing = ShrunkMLP.from_mlp(mlp).eval(), x.new_empty(2, 0, 32)
    assert shrunk(nothing).shape == nothing.shape
    assert len(shrunk.gate) % 64 == 0 and error(shrunk(x), mlp(x)) < 1e-2
    for layer in (mlp.gate_proj, mlp.up_proj):
        layer.weight.data *= sparse(channels, 32) != 0
    packed = Sp24MLP.from_mlp(mlp).eval()
    assert error(packed(x), mlp(x)) < 1e-2
    assert packed(nothing).shape == nothing.shape


def test_packed_layers_say_what_they_cannot_do() -> None:
    linear = nn.Linear(72, 16, dtype=BF16)
    linear.weight.data *= sparse(16, 72) != 0
    layer = Sp24Linear.from_linear(linear).eval()
    assert torch.equal(layer.weight, linear.weight)
    with pytest.raises(KernelError, match="Sp24Linear takes 72 inputs, not 80"):
        layer(normal(1, 80, dtype=BF16))
    with pytest.raises(KernelError, match=r"packed in torch\.bfloat16 and keeps that type"):
        nn.Sequential(layer).half()
    with pytest.raises(KernelError, match="computes with packed weights, which cannot be replaced"):
        nn.Sequential(layer).load_state_dict(nn.Sequential(linear).state_dict())


def test_training_and_other_types_are_refused() -> None:
    linear = nn.Linear(64, 16, dtype=BF16)
    linear.weight.data *= sparse(16, 64) != 0
    layer = Sp24Linear.from_linear(linear)
    with pytest.raises(KernelError, match=r"Sp24Linear is for inference.*call model\.eval\(\)"):
        layer(normal(1, 64, dtype=BF16))
    with pytest.raises(KernelError, match=r"packed in torch\.bfloat16, and its input is torch\.float16"):
        layer.eval()(normal(1, 64, dtype=torch.float16))
    with pytest.raises(KernelError, match="row 0 has"):
        Sp24Linear.from_linear(nn.Linear(64, 16, dtype=BF16))


def test_what_is_24_is_told_from_the_weight() -> None:
    assert modules.is_24(sparse(8, 64)) and modules.is_24(sparse(8, 64, kept=1))
    assert not modules.is_24(normal(8, 64)) and not modules.is_24(sparse(8, 60))
