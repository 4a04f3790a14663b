"""Matrices for the kernels' tests."""

from __future__ import annotations

import torch
from llmprune_kernels.formats.fragments import Fragments
from llmprune_kernels.formats.sp24 import Sp24
from torch import Tensor


def sparse(
    rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0, kept: int = 2
) -> Tensor:
    """A random matrix of small whole numbers with at most `kept` non-zeros in every group of four."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 100, (rows, columns), generator=generator)
    order = torch.rand(rows, columns // 4, 4, generator=generator).argsort(-1).reshape(rows, columns)
    return (values * (order < kept)).to(dtype)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Fragments:
    """A random packed 2:4 matrix."""
    mask = sparse(rows, columns, seed=seed) != 0
    return Fragments.pack(Sp24.from_dense(normal(rows, columns, dtype=dtype, seed=seed) * mask))


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative to the norm."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())
