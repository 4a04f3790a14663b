"""ADMM on the layer's squared output error, then the best weights for its mask (ALPS, Meng et al., 2024,
arXiv:2406.07831; Boza, 2024, arXiv:2401.02938).

Inputs are scaled to unit mean square, where the largest weights are Wanda's. Weights B that fit the outputs
and weights Z of the pattern are pulled together ever harder, until the mask of Z stays.

Letters used in shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from llmprune.methods.base import Method, Solution, Weights
from llmprune.patterns.base import Pattern
from llmprune.tensors.fit import conjugate_gradients
from llmprune.tensors.held_out import RIDGES, USUAL, HeldOutGram
from llmprune.tensors.statistics import Gram, Statistic

EVERY = 3  # iterations between two looks at the mask
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # of the penalty, where more of the mask has changed
STEPS = 20  # of conjugate gradients, once the mask is settled


@dataclass(frozen=True)
class Admm(Method[Gram]):
    """Slower than SparseGPT, and nearer to the dense outputs the more weights go."""

    needs: ClassVar = Gram
    serves: ClassVar = ("weights",)

    damping: Annotated[float, Field(gt=0)] | Literal["held_out"] = USUAL
    """Added to the unit diagonal of the scaled Gram matrix; pulls the weights to the dense ones. `held_out`
    tries some for the last fit, on every fourth batch of the text, layer by layer."""

    penalty: Annotated[float, Field(gt=0)] = 0.1
    """How hard B and Z are pulled together at first."""

    iterations: Annotated[int, Field(ge=1)] = 60
    """Most of them; fewer where the mask settles."""

    @property
    def gathers(self) -> type[Statistic]:
        """With a damping by held-out windows, those apart."""
        return HeldOutGram if self.damping == "held_out" else Gram

    def solve(self, weights: Weights, statistic: Gram, pattern: Pattern, sparsity: float) -> Solution:
        """Prune one layer to `sparsity`; the kept weights change."""
        scale = statistic.scale
        dense = weights.matrix.float() * scale
        dense[:, statistic.diagonal == 0] = 0  # inputs that were always zero: any weight serves
        usual = USUAL if self.damping == "held_out" else self.damping
        keep, near = self._mask(dense, statistic, pattern, sparsity, usual)
        damping = _chosen(dense, near, keep, statistic) if self.damping == "held_out" else usual
        weight = _fitted(dense, near, keep, statistic, damping)
        weight = (weight / scale).masked_fill_(~keep, 0).to(weights.matrix.dtype)
        return Solution(weight, keep, {"damping": damping} if self.damping == "held_out" else {})

    def _mask(
        self, dense: Tensor, statistic: Gram, pattern: Pattern, sparsity: float, damping: float
    ) -> tuple[Tensor, Tensor]:
        """Return the mask [O, I], and weights [O, I] of this mask that are near the best.

        Args:
            dense: scaled weights W [O, I].
            statistic: of the inputs; H is the Gram matrix of the scaled ones.
            pattern: which masks are allowed.
            sparsity: share to remove.
            damping: added to the diagonal of H.
        """
        target = dense @ statistic.correlations(damping)
        penalty = self.penalty
        inverse = statistic.shifted_inverse(damping, penalty)
        kept = seen = pattern.keep(dense.square(), sparsity)
        feasible, dual = dense * kept, torch.zeros_like(dense)
        for iteration in range(1, self.iterations + 1):
            free = (target - dual + penalty * feasible) @ inverse
            candidate = free + dual / penalty
            kept = pattern.keep(candidate.square(), sparsity)
            feasible = candidate * kept
            dual += penalty * (free - feasible)
            if iteration % EVERY == 0:
                changed = float((kept != seen).sum()) / float(kept.sum())
                factor = next((growth for least, growth in GROWTH if changed > least), None)
                if factor is None:
                    break
                seen, penalty = kept, penalty * factor
                inverse = statistic.shifted_inverse(damping, penalty)
        kept = pattern.keep(free.square(), sparsity)
        return kept, free * kept


def _fitted(dense: Tensor, near: Tensor, keep: Tensor, statistic: Gram, damping: float) -> Tensor:
    """The best weights [O, I] for a mask, from weights that are near."""
    gram = statistic.correlations(damping)
    return near + conjugate_gradients(gram, (dense - near) @ gram, keep, STEPS)


def _chosen(dense: Tensor, near: Tensor, keep: Tensor, statistic: Gram) -> float:
    """The damping whose fit to the rest of the text has the least error on what is held out of it."""
    assert isinstance(statistic, HeldOutGram)
    if not statistic.held.tokens:  # fewer batches than one is held out of
        return USUAL
    scale = statistic.scale  # of the whole text, as that of the weights
    rest, held_out = (part.value / scale[:, None] / scale for part in (statistic.rest, statistic.held))
    losses = {}
    for damping in RIDGES:
        damped = rest + damping * torch.eye(len(rest), device=rest.device)
        step = conjugate_gradients(damped, (dense - near) @ damped, keep, STEPS)
        error = dense - near - step
        losses[damping] = float(((error @ held_out) * error).sum())
    return min(RIDGES, key=lambda damping: losses[damping])
