"""OWL (Yin et al., 2024, arXiv:2310.05175): blocks with more outliers in their Wanda scores keep more. It
gains on Llama and loses to `uniform` on Qwen; `best` compares the two.

With SparseGPT at 70 %, the mean score of seven tasks is 46.0 against 43.2 of `uniform` on Llama-3-8B, but
48.3 against 50.9 on Qwen2.5-7B, and 48.5 against 50.7 on Qwen3-8B (figures of LSA, ICLR 2026).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.methods.wanda import Wanda
from llmprune.tensors.statistics import InputNorm


@dataclass(frozen=True)
class Owl(Allocator):
    """The density of a block is its share of outliers, rescaled to a band around the target density."""

    needs_text: ClassVar = True
    spreads: ClassVar = True

    outlier: Annotated[float, Field(gt=0)] = 5.0
    """A score is an outlier if it exceeds this multiple of its block's mean (the paper's M)."""

    spread: Annotated[float, Field(ge=0, lt=0.5)] = 0.08
    """Half the width of the band of block sparsities (the paper's lambda)."""

    def allocate(self, problem: Problem) -> Allocation:
        """Compute one sparsity per block from the scores of the dense model."""
        scores: dict[int, list[torch.Tensor]] = {}
        outliers: dict[int, float] = {}
        for site, statistic in problem.measured(InputNorm):
            assert isinstance(statistic, InputNorm)
            here = scores.setdefault(site.block, [])
            here.append(Wanda().score(problem.store.weights(site), statistic))
            if len(here) == len(problem.anatomy.block_sites(site.block)):
                mean = sum(float(s.double().sum()) for s in here) / sum(s.numel() for s in here)
                above = sum(int((s > self.outlier * mean).sum()) for s in here)
                outliers[site.block] = above / sum(s.numel() for s in here)
                scores[site.block] = []  # frees as much memory as the block's weights take
        sizes = {block: 0 for block in outliers}
        for site in problem.anatomy.sites:
            sizes[site.block] += site.weights
        density = self._densities(outliers, sizes, 1 - problem.sparsity)
        return Allocation({site.name: 1 - density[site.block] for site in problem.anatomy.sites})

    def _densities(
        self, outliers: dict[int, float], sizes: dict[int, int], target: float
    ) -> dict[int, float]:
        """Return densities in a band of width 2 * spread around `target`, narrower near 0 and 1."""
        low, high = min(outliers.values()), max(outliers.values())
        band = 2 * self.spread
        scaled = {b: band * (o - low) / (high - low) if high > low else 0.0 for b, o in outliers.items()}
        # Weighted by size: blocks may differ, and the densities must average to the target over weights.
        mean = sum(scaled[b] * sizes[b] for b in scaled) / sum(sizes.values())
        below = target / mean if mean else 1.0
        above = (1 - target) / (band - mean) if band > mean else 1.0
        fit = min(1.0, below, above)
        return {block: target + fit * (value - mean) for block, value in scaled.items()}
