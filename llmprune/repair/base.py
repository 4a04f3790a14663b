"""What a repair is: how the inputs that stay make up for those that go.

All repairs minimise the error E||W x - (V x_K + b)||^2 of a layer's output over V, b, or both, where x_K are
the inputs that stay; they differ in what may change.

Letters used in shapes: O outputs, I inputs, K inputs that stay, R inputs that go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Generic, TypeVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from llmprune.plugins import OPTIONS
from llmprune.tensors.statistics import Nothing, Statistic

S = TypeVar("S", bound=Statistic)


@dataclass(frozen=True)
class Repaired:
    """The weight [O, I], zero where inputs went, and what to add to the layer's bias [O], if anything."""

    weight: Tensor
    bias: Tensor | None = None
    notes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Repair(Generic[S]):
    """Override `mend`. The fields of a subclass are its options in a recipe."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS
    needs: ClassVar[type[Statistic]] = Nothing
    gives_bias: ClassVar[bool] = False
    """Whether the pruned layer needs a bias to hold the result."""

    def mend(self, weight: Tensor, keep: Tensor, statistic: S) -> Repaired:
        """Repair one layer.

        Args:
            weight: dense [O, I].
            keep: bool [I], the inputs that stay.
            statistic: of the layer's inputs.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Refit(Repair[S]):
    """What the repairs share that move the weights that stay."""

    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Penalty on moving a weight, as a share of the mean diagonal of the inputs' second moments."""


def refitted(weight: Tensor, keep: Tensor, moments: Tensor, ridge: float) -> tuple[Tensor, float]:
    """The weight V on the inputs that stay, with zeros elsewhere: V = W_K + W_R C_RK (C_KK + r I)^-1.

    This minimises E||W x - V x_K||^2 + r ||V - W_K||^2 (the optimal brain surgeon's refit of OSSCAR and Tyr,
    with a ridge), so it is never worse on the calibration inputs than leaving W_K as it is.

    Args:
        weight: [O, I].
        keep: bool [I].
        moments: C = E[x x^T], or the covariance [I, I], symmetric.
        ridge: r as a share of C's mean diagonal; ten times more whenever the factorisation fails.

    Returns:
        float64 [O, I], and the ridge that was used.
    """
    refit = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
    refit[:, keep] = weight[:, keep].double()
    if keep.all() or not keep.any():
        return refit, ridge
    kept = moments[keep][:, keep].double()
    step = float(kept.diagonal().mean()) or 1.0
    added = 0.0
    while True:
        kept.diagonal().add_(ridge * step - added)
        added = ridge * step
        factor, failed = torch.linalg.cholesky_ex(kept)
        if not failed:
            break
        ridge *= 10
    crossed = moments[keep][:, ~keep].double() @ weight[:, ~keep].double().T  # C_KR W_R^T [K, O]
    refit[:, keep] += torch.cholesky_solve(crossed, factor).T
    return refit, ridge
