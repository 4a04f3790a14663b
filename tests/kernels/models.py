"""Small models for the kernels: a llama, 2:4 if that is asked, and what has become of its layers."""

from __future__ import annotations

import torch
from llmprune_kernels.modules import Inference, ShrunkMLP, Sp24Linear, Sp24MLP
from torch import nn
from transformers import PreTrainedModel

from tests import tiny
from tests.kernels.matrices import sparse

BF16 = torch.bfloat16


def make_24(model: PreTrainedModel) -> None:
    """Zero two of every four weights in all linear layers but the output embeddings."""
    for module in model.modules():
        if type(module) is nn.Linear and module is not model.get_output_embeddings():
            module.weight.data *= sparse(*module.weight.shape) != 0


def llama(sparse_layers: bool) -> PreTrainedModel:
    model = tiny.model("llama", BF16)
    if sparse_layers:
        make_24(model)
    return model


def kernels_in(module: nn.Module) -> bool:
    return any(isinstance(part, Inference) for part in module.modules())


def kinds(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules()} & {nn.Linear, Sp24Linear, Sp24MLP, ShrunkMLP}
