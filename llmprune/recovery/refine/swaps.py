"""Which kept weights swap places with removed ones: a binary quadratic problem and its search.

In every group, as many candidates are removed as are kept, and stay so: the budget is exact. The curvature is
the product of few gradients, F = J^T J / N, so that nothing is as large as the square of the candidates.

Letters used in shapes: G groups, K weights of a group, C candidates of a group, N gradients, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SHORTLIST = 8  # candidates of either kind whose pairs are all looked at in one step of the search
STEPS = 100  # of the descent and of the search
TENURE = 4  # most steps for which a weight that moved stays where it is


def candidates(cost: Tensor, gone: Tensor, usable: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Choose the weights of every group that may swap places.

    Args:
        cost: of flipping each weight alone [G, K].
        gone: bool [G, K], True where removed.
        usable: bool [G, K], False for weights that must not move.
        each: how many removed and how many kept ones.

    Returns:
        Flat indices [G, C], first the removed ones, then the kept; and the sum of their costs [G],
        infinite for a group with too few.
    """
    lowest = [
        torch.where(kind & usable, cost, torch.inf).topk(each, dim=1, largest=False) for kind in (gone, ~gone)
    ]
    columns = torch.cat([found.indices for found in lowest], 1)
    first = torch.arange(len(cost), device=cost.device)[:, None] * cost.shape[1]
    return first + columns, lowest[0].values.sum(1) + lowest[1].values.sum(1)


@dataclass(frozen=True)
class Problem:
    """The change of the loss that is expected of a change d of the weights: a g^T d + d^T F d / 2 + l |d|^2.

    The objective of arXiv:2411.17796 on candidates [G, C]. Of removed weights, d is their original value; of
    kept ones, its negative. F = c J^T J / N + (1 - c) D: few gradients say little about most directions, so
    their product is shrunk towards a diagonal that more text was seen for.
    """

    values: Tensor
    """The original weights [G, C]."""

    gone: Tensor
    """bool [G, C], True for those that are removed now."""

    gradient: Tensor
    """g [G, C], of the mean loss."""

    diagonal: Tensor
    """D [G, C], the curvature along each weight alone."""

    jacobian: Tensor
    """J [N, G, C], one gradient a row."""

    alpha: float = 1.0
    """a: how far the gradient is trusted."""

    coupling: float = 1.0
    """c, from 0 to 1; the paper's is 1."""

    ridge: float = 0.0
    """l: what is feared of every change."""

    def change(self, gone: Tensor) -> Tensor:
        """d [G, C], if those of another mask [G, C] are removed."""
        return (self.gone.to(self.values.dtype) - gone.to(self.values.dtype)) * self.values

    def energy(self, gone: Tensor) -> float:
        """The objective of another mask [G, C]; that of the present one is zero."""
        d = self.change(gone)
        slopes = torch.einsum("ngc,gc->n", self.jacobian, d)
        alone = ((1 - self.coupling) / 2 * self.diagonal + self.ridge) * d.square()
        return float(
            (self.alpha * self.gradient * d + alone).sum() + self.coupling / 2 * slopes.square().mean()
        )

    def flips(self, gone: Tensor) -> tuple[Tensor, Tensor]:
        """What flipping each candidate alone adds, to its weight [G, C] and to the energy [G, C]."""
        d, samples = self.change(gone), len(self.jacobian)
        step = torch.where(gone, self.values, -self.values)
        slopes = torch.einsum("ngc,gc->n", self.jacobian, d)
        alone = (1 - self.coupling) * self.diagonal + 2 * self.ridge
        slope = self.alpha * self.gradient + alone * d
        slope += self.coupling / samples * torch.einsum("ngc,n->gc", self.jacobian, slopes)
        return step, step * slope + (alone + self._own) / 2 * step.square()

    @cached_property
    def _own(self) -> Tensor:
        """The diagonal [G, C] of c J^T J / N."""
        return self.coupling * self.jacobian.square().mean(0)


def solve(problem: Problem, generator: torch.Generator) -> Tensor:
    """The mask bool [G, C], True to remove, with the lowest energy that was found; never above the present.

    Many pairs swap at once while that pays, and then one after the other, by tabu search.
    """
    gone, lowest = _descend(problem)
    if problem.coupling == 0:  # every weight counts by itself, so the first descent was exact
        return gone
    best = gone
    until = torch.zeros_like(gone, dtype=torch.long)
    for step in range(STEPS):
        pair = _best_pair(problem, gone, until > step)
        if pair is None:
            break
        gone = _swapped(gone, pair)
        tenures = torch.randint(1, TENURE + 1, (2,), generator=generator)  # equal ones run in circles
        until.view(-1)[pair] = step + 1 + tenures.to(gone.device)
        if (energy := problem.energy(gone)) < lowest:
            best, lowest = gone, energy
    return best


def _descend(problem: Problem) -> tuple[Tensor, float]:
    """Swap the most promising pairs together; half as many, whenever they do not keep their promise."""
    gone, energy = problem.gone, 0.0
    width = gone.numel() // 2
    for _ in range(STEPS):
        pairs = _ranked_pairs(problem, gone)[:width]
        if not len(pairs):
            break
        moved = _swapped(gone, pairs)
        if (reached := problem.energy(moved)) < energy:
            gone, energy, width = moved, reached, 2 * width
        else:
            width = len(pairs) // 2
    return gone, energy


def _ranked_pairs(problem: Problem, gone: Tensor) -> Tensor:
    """Flat indices [P, 2] of pairs that lower the energy, the best first.

    In every group, the removed weight that gains most goes with the kept one that costs least, and so on.
    """
    step, cost = problem.flips(gone)
    half = gone.shape[1] // 2
    kinds = [
        torch.where(kind, cost, torch.inf).argsort(dim=1, stable=True)[:, :half] for kind in (gone, ~gone)
    ]
    pull = problem.jacobian * step
    pulls = [pull.gather(2, kind.expand(len(pull), -1, -1)) for kind in kinds]
    gain = (
        cost.gather(1, kinds[0]) + cost.gather(1, kinds[1]) + problem.coupling * (pulls[0] * pulls[1]).mean(0)
    )
    gain = gain.flatten()
    pairs = torch.stack([_flat(kind, gone.shape[1]) for kind in kinds], 1)
    order = gain.argsort(stable=True)
    return pairs[order[: int((gain < 0).sum())]]


def _best_pair(problem: Problem, gone: Tensor, barred: Tensor) -> Tensor | None:
    """Flat indices [2] of the pair that adds least to the energy; None if all are barred."""
    step, cost = problem.flips(gone)
    few = min(SHORTLIST, gone.shape[1] // 2)
    kinds = [
        torch.where(kind & ~barred, cost, torch.inf).topk(few, dim=1, largest=False) for kind in (gone, ~gone)
    ]
    pull = problem.jacobian * step
    pulls = [pull.gather(2, kind.indices.expand(len(pull), -1, -1)) for kind in kinds]
    both = problem.coupling / len(pull) * torch.einsum("nga,ngb->gab", *pulls)
    added = kinds[0].values[:, :, None] + kinds[1].values[:, None, :] + both
    lowest = int(added.argmin())
    if added.view(-1)[lowest].isinf():
        return None
    group, first, second = lowest // few**2, lowest // few % few, lowest % few
    found = torch.stack([kinds[0].indices[group, first], kinds[1].indices[group, second]])
    return found + group * gone.shape[1]


def _flat(columns: Tensor, width: int) -> Tensor:
    """Column numbers [G, ...] of a matrix of that width as flat indices."""
    return (columns + torch.arange(len(columns), device=columns.device)[:, None] * width).flatten()


def _swapped(gone: Tensor, pairs: Tensor) -> Tensor:
    """The mask [G, C] with the candidates at these flat indices flipped."""
    moved = gone.clone()
    moved.view(-1)[pairs.flatten()] ^= True
    return moved
