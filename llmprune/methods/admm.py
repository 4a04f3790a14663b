"""ADMM on the layer's squared output error, then the best weights for its mask (ALPS, Meng et al., 2024,
arXiv:2406.07831; Boza, 2024, arXiv:2401.02938).

Inputs are scaled to unit mean square, where the largest weights are Wanda's. Weights B that fit the outputs
and weights Z of the pattern are pulled together ever harder, until the mask of Z stays.

Letters used in shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llmprune.methods.base import Method, Solution, Weights
from llmprune.patterns.base import Pattern
from llmprune.tensors.fit import conjugate_gradients
from llmprune.tensors.statistics import Gram

EVERY = 3  # iterations between two looks at the mask
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # of the penalty, where more of the mask has changed
STEPS = 20  # of conjugate gradients, once the mask is settled


@dataclass(frozen=True)
class Admm(Method[Gram]):
    """Slower than SparseGPT, and nearer to the dense outputs the more weights go."""

    needs: ClassVar = Gram
    serves: ClassVar = ("weights",)

    damping: Annotated[float, Field(gt=0)] = 0.01
    """Added to the unit diagonal of the scaled Gram matrix; pulls the weights to the dense ones."""

    penalty: Annotated[float, Field(gt=0)] = 0.1
    """How hard B and Z are pulled together at first."""

    iterations: Annotated[int, Field(ge=1)] = 60
    """Most of them; fewer where the mask settles."""

    def solve(self, weights: Weights, statistic: Gram, pattern: Pattern, sparsity: float) -> Solution:
        """Prune one layer to `sparsity`; the kept weights change."""
        scale = statistic.scale
        dense = weights.matrix.float() * scale
        dense[:, statistic.diagonal == 0] = 0  # inputs that were always zero: any weight serves
        gram = statistic.correlations(self.damping)
        keep, near = self._mask(dense, dense @ gram, statistic, pattern, sparsity)
        error = (dense - near) @ gram
        weight = near + conjugate_gradients(gram, error, keep, STEPS)
        weight = (weight / scale).masked_fill_(~keep, 0).to(weights.matrix.dtype)
        return Solution(weight, keep)

    def _mask(
        self, dense: Tensor, target: Tensor, statistic: Gram, pattern: Pattern, sparsity: float
    ) -> tuple[Tensor, Tensor]:
        """Return the mask [O, I], and weights [O, I] of this mask that are near the best.

        Args:
            dense: scaled weights W [O, I].
            target: W (H + damping) [O, I], for the Gram matrix H of the scaled inputs.
            statistic: of the inputs.
            pattern: which masks are allowed.
            sparsity: share to remove.
        """
        penalty = self.penalty
        inverse = statistic.shifted_inverse(self.damping, penalty)
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
                inverse = statistic.shifted_inverse(self.damping, penalty)
        kept = pattern.keep(free.square(), sparsity)
        return kept, free * kept
