"""Optimal Brain Surgeon for whole units (Hassibi and Stork, 1992; for units OSSCAR, Meng et al., 2024,
arXiv:2403.12983): remove the unit whose loss the others compensate best, one after another.

After each removal all other units are refitted, so the order takes account of units that stand in for one
another. On synthetic calibration text it is the data-free second order of OBSPA (arXiv:2403.18955).

Letters used in shapes: O outputs, I inputs, U units of g = I / U inputs each, L inputs that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors import ops
from llmprune.tensors.statistics import CentredGram

SEPARATE = 1e-12  # relative difference of scores that would be equal
PANEL = 64  # channels removed between two updates of all that are left


@dataclass(frozen=True)
class Obs(Method[CentredGram]):
    """Decides the order of removal; the repair `affine` refits what stays, as exactly as the order assumes.

    Behind the same refit no better than FLAP's order on the two models that were measured (eval/RESULTS.md).
    Removes channels only, unless `pattern.parts` is set: the losses of heads do not compare with theirs. The
    order is nested. For n channels it takes 3 n^3 operations in float64 and three matrices [n, n].
    """

    needs: ClassVar = CentredGram
    propagation: ClassVar = "dense"
    pattern: ClassVar = {"name": "units", "parts": "ffn"}
    allocation: ClassVar = "global_threshold"
    repair: ClassVar = "affine"
    serves: ClassVar = ("units",)

    ridge: Annotated[float, Field(gt=0)] = 10.0
    """Penalty on moving a weight, as a share of its input's variance: inputs that stand in for it may miss so
    much on another text. The larger, the closer the order is to that of variance times squared weights."""

    def score(self, weights: Weights, statistic: CentredGram) -> Tensor:
        """Return float64 [I]: the most that the removal of a unit, or of one before it, adds to the loss.

        The loss is the mean squared error of the outputs after the best refit, with the ridge's share.
        Inputs are counted in their standard deviations.
        """
        covariance = statistic.covariance
        deviation = covariance.diagonal().clamp_min(0).sqrt()  # a difference, rounded
        # What never varies is a bias: removing it costs nothing.
        matrix = weights.matrix.double() * deviation
        deviation[deviation == 0] = 1
        covariance.div_(deviation).div_(deviation[:, None])
        covariance.diagonal().fill_(1)
        inverse = torch.cholesky_inverse(ops.factored(covariance, self.ridge)[0])
        if weights.units == len(inverse):
            order, added = channels_in_order(inverse, matrix.T @ matrix)
        else:
            order, added = groups_in_order(inverse, matrix, weights.units)
        score = torch.empty_like(added)
        # Compensation makes some later removals cheaper than earlier ones; the order stands all the same.
        place = torch.arange(len(order), dtype=added.dtype, device=order.device)
        score[order] = added.clamp_min(0).cummax(0).values * (1 + SEPARATE * place)
        return score.repeat_interleave(len(inverse) // weights.units)


def groups_in_order(inverse: Tensor, weight: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Remove unit after unit: the one with the lowest loss tr(W_u P_uu^-1 W_u^T), where P is the inverse.

    Args:
        inverse: P = (C + r I)^-1 [I, I].
        weight: W [O, I].
        units: U.

    Returns:
        The units in their order [U], and what each adds to the loss, in this order.
    """
    inverse, weight = inverse.clone(), weight.clone()
    inputs = torch.arange(len(inverse), device=inverse.device).reshape(units, -1)
    left = list(range(units))
    order, added = [], []
    while left:
        own = torch.stack([inverse[inputs[u]][:, inputs[u]] for u in left])  # [left, g, g]
        columns = torch.stack([weight[:, inputs[u]] for u in left])  # [left, O, g]
        losses = (torch.linalg.solve(own, columns, left=False) * columns).sum((1, 2))
        found = int(losses.argmin())
        unit = inputs[left[found]]
        step = torch.linalg.solve(own[found], inverse[unit])  # P_uu^-1 P_u: [g, I]
        weight -= weight[:, unit] @ step
        inverse -= inverse[:, unit] @ step
        order.append(left.pop(found))
        added.append(losses[found])
    return torch.tensor(order, device=inverse.device), torch.stack(added)


def channels_in_order(inverse: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """The same for units of one input, from A = W^T W, of which the loss of a channel is A_jj / P_jj.

    Removing j makes P - l l^T of P, with l = P_:j / sqrt(P_jj), and A - l t^T - t l^T of A, with
    t = A_:j / sqrt(P_jj) - l A_jj / P_jj / 2: as in a pivoted Cholesky factorisation, a panel of such updates
    waits and is one matrix product. Changes both matrices.

    Args:
        inverse: P [I, I].
        products: A [I, I].
    """
    order, added = [], []
    here = torch.arange(len(inverse), device=inverse.device)
    while len(here):
        gone, losses, left, right = _panel(inverse, products)
        order.append(here[gone])
        added.append(losses)
        stay = torch.ones(len(here), dtype=torch.bool, device=here.device)
        stay[gone] = False
        here, left, right = here[stay], left[:, stay], right[:, stay]
        inverse = inverse[stay][:, stay].addmm_(left.T, left, alpha=-1)
        products = products[stay][:, stay].addmm_(left.T, right, alpha=-1).addmm_(right.T, left, alpha=-1)
    return torch.cat(order), torch.cat(added)


def _panel(inverse: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the next channels [B], what each adds to the loss [B], and their l and t [B, L]."""
    count = min(PANEL, len(inverse))
    left, right = inverse.new_zeros(2, count, len(inverse)).unbind()
    pivots, squares = inverse.diagonal().clone(), products.diagonal().clone()
    price = squares / pivots
    gone, added = [], []
    for k in range(count):
        found = int(price.argmin())
        root = pivots[found].sqrt()
        left[k] = (inverse[found] - left[:k, found] @ left[:k]) / root
        column = products[found] - left[:k, found] @ right[:k] - right[:k, found] @ left[:k]
        right[k] = column / root - left[k] * (price[found] / 2)
        gone.append(found)
        added.append(price[found].clone())
        pivots -= left[k].square()
        squares -= 2 * left[k] * right[k]
        price = squares / pivots
        price[gone] = torch.inf
    return torch.tensor(gone, device=inverse.device), torch.stack(added), left, right
