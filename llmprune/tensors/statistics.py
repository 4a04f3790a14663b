"""What calibration tells a method about the inputs of one linear layer.

A statistic is fed activations batch by batch and keeps a running summary whose size does not depend on how
many tokens it has seen.

Letters used in shapes: T tokens, I input features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from llmprune.errors import JobError
from llmprune.tensors import ops

S = TypeVar("S", bound="Statistic")
Total = Callable[[Tensor], None]  # replaces a matrix by its sum over all processes


class Statistic:
    """Running summary of the inputs of one linear layer."""

    small: ClassVar[bool] = True
    """Whether those of all layers of a model can be held at a time."""

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self.features, self.tokens = features, 0

    @classmethod
    def fewest(cls, features: int) -> int:
        """Tokens below which it says little of a layer with so many inputs."""
        return 64

    def update(self, x: Tensor) -> None:
        """Account for the activations `x` [T, I]."""
        self.tokens += x.shape[0]

    def merge(self, later: Self) -> None:
        """Account for what another summary saw after this one, as if `update` had; for those that are small.

        Raises:
            JobError: it cannot.
        """
        raise JobError(f"{type(self).__name__} cannot be measured by several processes; start one")

    def add_up(self, total: Total) -> None:
        """Account for what the summaries of other processes saw; for those that are not small.

        Raises:
            JobError: it cannot.
        """
        raise JobError(f"{type(self).__name__} cannot be measured by several processes; start one")

    @property
    def parts(self) -> list[Statistic]:
        """The summaries that this one consists of."""
        return [self]

    def of(self, kind: type[S]) -> S:
        """The part of this summary that is of a kind; anything has a part that is `Nothing`."""
        if issubclass(kind, Nothing):
            return kind(0)
        assert isinstance(self, kind)
        return self

    def finite(self) -> bool:
        """Whether every activation so far was a finite number."""
        return True

    def target(self, weight: Tensor) -> Tensor:
        """The weight [O, I] whose outputs on these inputs a pruned one is to come near to."""
        return weight

    @classmethod
    def bytes_for(cls, features: int) -> int:
        """Memory that a summary of `features` inputs holds, in bytes."""
        return 0


class Nothing(Statistic):
    """For methods that look at the weights alone: no calibration pass is run."""


class InputNorm(Statistic):
    """Root mean square of every input feature (Wanda's ||X_j||, up to a constant)."""

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self._square_sum = torch.zeros(features, device=device, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Account for the activations `x` [T, I]."""
        super().update(x)
        self._square_sum += x.float().square().sum(0)

    def merge(self, later: Self) -> None:
        """Account for what another summary saw after this one."""
        self.tokens += later.tokens
        self._square_sum += later._square_sum

    def finite(self) -> bool:
        """Whether every activation so far was a finite number."""
        return bool(self._square_sum.isfinite().all())

    @property
    def value(self) -> Tensor:
        """float32 [I]"""
        return (self._square_sum / self.tokens).sqrt().float()

    @classmethod
    def bytes_for(cls, features: int) -> int:
        """Memory that a summary of `features` inputs holds, in bytes."""
        return 8 * features


class InputMoments(Statistic):
    """Mean and variance of every input feature, merged batch by batch (Welford's update in Chan's form)."""

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self.mean = torch.zeros(features, device=device, dtype=torch.float64)
        self._spread = torch.zeros_like(self.mean)  # sum of squared deviations from the mean

    def update(self, x: Tensor) -> None:
        """Account for the activations `x` [T, I]."""
        mean = x.float().mean(0)
        self._join(x.shape[0], mean.double(), (x.float() - mean).square().sum(0).double())

    def merge(self, later: Self) -> None:
        """Account for what another summary saw after this one."""
        self._join(later.tokens, later.mean, later._spread)

    def _join(self, tokens: int, mean: Tensor, spread: Tensor) -> None:
        seen = self.tokens
        self.tokens += tokens
        shift = mean - self.mean
        self._spread += spread + shift.square() * (seen * tokens / self.tokens)
        self.mean += shift * (tokens / self.tokens)

    def finite(self) -> bool:
        """Whether every activation so far was a finite number."""
        return bool(self.mean.isfinite().all() and self._spread.isfinite().all())

    @property
    def variance(self) -> Tensor:
        """float64 [I], divided by tokens - 1"""
        return self._spread / (self.tokens - 1)

    @classmethod
    def bytes_for(cls, features: int) -> int:
        """Memory that a summary of `features` inputs holds, in bytes."""
        return 16 * features


class Gram(Statistic):
    """X^T X, the Hessian of the layer's squared output error (SparseGPT, OBS)."""

    small: ClassVar = False

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self._sum = torch.zeros(features, features, device=device)
        self._factors: dict[tuple[float, torch.dtype], tuple[Tensor, float]] = {}
        self._spectrum: tuple[Tensor, Tensor] | None = None

    def update(self, x: Tensor) -> None:
        """Account for the activations `x` [T, I]."""
        super().update(x)
        ops.add_gram(self._sum, x)
        self._factors.clear()
        self._spectrum = None

    def add_up(self, total: Total) -> None:
        """Account for what the summaries of other processes saw."""
        tokens = torch.tensor([[self.tokens]])
        total(tokens)
        self.tokens = int(tokens)
        for panel in ops.panels(self._sum):
            total(panel)

    def finite(self) -> bool:
        """Whether every activation so far was a finite number."""
        return bool(self._sum.diagonal().isfinite().all())

    @property
    def diagonal(self) -> Tensor:
        """float32 [I], the mean square of every input"""
        return self._sum.diagonal() / self.tokens

    @property
    def value(self) -> Tensor:
        """float32 [I, I], the mean over tokens of x x^T"""
        return ops.mirrored(self._sum) / self.tokens

    @property
    def scale(self) -> Tensor:
        """float32 [I], the root mean square of every input; 1 where it was always zero"""
        root = self.diagonal.sqrt()
        return root.masked_fill(root == 0, 1)

    def correlations(self, damping: float) -> Tensor:
        """float32 [I, I], the Gram matrix of the inputs over their `scale`, with `damping` on its diagonal"""
        found = self.value / self.scale[:, None] / self.scale
        found.diagonal().add_(damping)
        return found

    def shifted_inverse(self, damping: float, shift: float) -> Tensor:
        """float32 [I, I], the inverse of `correlations` with `shift` added to its diagonal.

        Layers that share their inputs share this statistic, so the eigenvectors are kept.
        """
        if self._spectrum is None:
            self._spectrum = torch.linalg.eigh(self.correlations(0.0).double())
        values, vectors = self._spectrum
        return ((vectors / (values.clamp_min(0) + damping + shift)) @ vectors.T).float()

    def reordered(self, order: Tensor) -> Gram:
        """The statistic of the same inputs in another order [I]."""
        found = Gram(len(order), self._sum.device)
        found.tokens, found._sum = self.tokens, ops.mirrored(self._sum)[order][:, order]
        return found

    def inverse_factor(self, damping: float, dtype: torch.dtype) -> tuple[Tensor, float]:
        """The upper triangular U with U^T U = H^-1, and the damping that made H positive definite.

        H is the Gram matrix with `damping` times its mean diagonal added, ten times more each time the
        factorisation fails. Inputs that were always zero get a unit diagonal. Layers that share their
        inputs share this statistic, so the factor is kept.

        Args:
            damping: share of the mean diagonal.
            dtype: of the factorisation; float64 is exact, float32 needs half the memory.

        Returns:
            U [I, I] in `dtype`, and the damping used.
        """
        if (damping, dtype) not in self._factors:
            self._factors[damping, dtype] = self._factorise(damping, dtype)
        return self._factors[damping, dtype]

    def _factorise(self, damping: float, dtype: torch.dtype) -> tuple[Tensor, float]:
        # Cholesky of H read backwards gives H = R R^T with R upper triangular, so that U = R^-1: one
        # factorisation and one triangular inverse, where Cholesky - inverse - Cholesky takes twice the work.
        backwards = self.value.to(dtype).flip(0, 1)
        diagonal = backwards.diagonal()
        diagonal[diagonal == 0] = 1
        lower, used = ops.factored(backwards, damping)
        del backwards, diagonal
        upper = lower.flip(0, 1)
        del lower
        eye = torch.eye(len(upper), dtype=dtype, device=upper.device)
        return torch.linalg.solve_triangular(upper, eye, upper=True), used

    @classmethod
    def fewest(cls, features: int) -> int:
        """Tokens below which it says little of a layer with so many inputs."""
        return max(64, features // 16)

    @classmethod
    def bytes_for(cls, features: int) -> int:
        """Memory that a summary of `features` inputs holds, in bytes, with its float64 factorisation."""
        return (4 + 3 * 8) * features * features


class CentredGram(Gram):
    """The Gram matrix with the mean of every input beside it, and so the covariance."""

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self._total = torch.zeros(features, device=device, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Account for the activations `x` [T, I]."""
        super().update(x)
        self._total += x.float().sum(0)

    def add_up(self, total: Total) -> None:
        """Account for what the summaries of other processes saw."""
        super().add_up(total)
        total(self._total[None])

    @property
    def mean(self) -> Tensor:
        """float64 [I]"""
        return self._total / self.tokens

    @property
    def covariance(self) -> Tensor:
        """float64 [I, I]"""
        # In float64: the difference of two nearly equal matrices loses digits when means are large.
        return self.value.double() - torch.outer(self.mean, self.mean)
