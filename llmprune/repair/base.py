"""Base class of repairs, which let the kept inputs of a layer compensate for the removed ones.

All repairs minimise the error E||W x - (V x_K + b)||^2 of a layer's output, where x_K are the kept inputs.
They differ in what may change: V, b, or both.

Letters used in shapes: O outputs, I inputs, K kept inputs, R removed inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from llmprune.plugins import OPTIONS
from llmprune.tensors import ops
from llmprune.tensors.held_out import RIDGES, USUAL, HeldOutGram
from llmprune.tensors.statistics import CentredGram, Nothing, Statistic

S = TypeVar("S", bound=Statistic)


@dataclass(frozen=True)
class Repaired:
    """The weight [O, I], zero at removed inputs, and an addition to the layer's bias [O], or None."""

    weight: Tensor
    bias: Tensor | None = None
    notes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Repair(Generic[S]):
    """Override `apply`. The fields of a subclass are its options in a recipe."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS
    needs: ClassVar[type[Statistic]] = Nothing
    serves: ClassVar[tuple[str, ...]] = ("units",)
    """What it compensates: whole `units`, whole `blocks`."""

    refits_seams: ClassVar[bool] = False
    """Whether it refits the last block before each removed span (`llmprune/run/seam.py`)."""

    gives_bias: ClassVar[bool] = False
    """True if the pruned layer needs a bias to hold the result."""

    by_rows: ClassVar[bool] = False
    """True if it compensates in each row by itself, without a bias."""

    @property
    def gathers(self) -> type[Statistic]:
        """What calibration gathers for it: what it needs, or more."""
        return self.needs

    def apply(self, weight: Tensor, keep: Tensor, statistic: S) -> Repaired:
        """Repair one layer.

        Args:
            weight: dense [O, I].
            keep: bool [I], True for inputs to keep.
            statistic: of the layer's inputs.
        """
        raise NotImplementedError


LayerRepair: TypeAlias = Repair[Any]  # a repair, whatever its statistic


@dataclass(frozen=True)
class Refit(Repair[S]):
    """Base class of the repairs that change the kept weights; override `fitted`."""

    ridge: Annotated[float, Field(gt=0)] | Literal["held_out"] = "held_out"
    """Penalty on moving a weight, as a share of the mean diagonal of the inputs' second moments; `held_out`
    tries some on every fourth batch of the text, layer by layer (of fewer than four batches: 0.01)."""

    @property
    def gathers(self) -> type[Statistic]:
        """With a ridge by held-out windows, those apart."""
        return HeldOutGram if self.ridge == "held_out" else self.needs

    def fitted(self, weight: Tensor, keep: Tensor, statistic: S, ridge: float) -> Repaired:
        """Repair one layer with a given ridge; the arguments are those of `apply`."""
        raise NotImplementedError

    def apply(self, weight: Tensor, keep: Tensor, statistic: S) -> Repaired:
        """Repair one layer."""
        ridge = self._chosen(weight, keep, statistic) if self.ridge == "held_out" else self.ridge
        return self.fitted(weight, keep, statistic, ridge)

    def _chosen(self, weight: Tensor, keep: Tensor, statistic: Any) -> float:
        """The ridge whose fit to the rest of the text has the least error on what is held out of it."""
        assert isinstance(statistic, HeldOutGram)
        if not statistic.held.tokens:  # fewer than four batches
            return USUAL
        rest: Any = statistic.rest
        fits = {ridge: self.fitted(weight, keep, rest, ridge) for ridge in RIDGES}
        return min(RIDGES, key=lambda ridge: lost(weight, fits[ridge], statistic.held))


def lost(weight: Tensor, repaired: Repaired, inputs: CentredGram) -> float:
    """E||W x - (V x + b)||^2 of a repair, over the inputs that were summarised.

    Args:
        weight: W [O, I].
        repaired: V and b.
        inputs: their second moments and means.
    """
    change = weight.double() - repaired.weight.double()
    error = float(((change @ inputs.value.double()) * change).sum())
    if repaired.bias is not None:
        error += float((repaired.bias * (repaired.bias - 2 * change @ inputs.mean)).sum())
    return error


def refitted(weight: Tensor, keep: Tensor, moments: Tensor, ridge: float) -> tuple[Tensor, float]:
    """Return the weight V on the kept inputs, with zeros elsewhere: V = W_K + W_R C_RK (C_KK + r I)^-1.

    This minimises E||W x - V x_K||^2 + r ||V - W_K||^2 (the optimal brain surgeon's refit of OSSCAR and Tyr,
    with a ridge), so on the calibration inputs it is never worse than an unchanged W_K.

    Args:
        weight: [O, I].
        keep: bool [I], True for inputs to keep.
        moments: C = E[x x^T], or the covariance [I, I], symmetric.
        ridge: r as a share of the mean diagonal of C_KK; multiplied by ten each time the factorisation fails.

    Returns:
        float64 [O, I], and the ridge used.
    """
    refit = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
    refit[:, keep] = weight[:, keep].double()
    if keep.all() or not keep.any():
        return refit, ridge
    kept = moments[keep][:, keep].double()
    factor, ridge = ops.factored(kept, ridge)
    crossed = moments[keep][:, ~keep].double() @ weight[:, ~keep].double().T  # C_KR W_R^T [K, O]
    refit[:, keep] += torch.cholesky_solve(crossed, factor).T
    return refit, ridge
