"""Low-rank adapters (LoRA, arXiv:2106.09685) whose product is masked in the forward pass (PERP,
arXiv:2312.15230), so that the merged model has the zeros of the pruned one and is the one that trained.

Letters used in shapes: R rows and C columns of a weight, as it is stored; r rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from llmprune.model.site import Site


class Adapter(nn.Module):
    """Adds scale B A to a weight, nothing where the weight is zero.

    Args:
        weight: [R, C].
        rank: r.
        scale: of the product; alpha / r in the terms of the LoRA paper.
        stored: the dtype of the checkpoint, to which the sum is rounded outside training.
        lots: draws A; B is zero.
    """

    def __init__(
        self, weight: Tensor, rank: int, scale: float, stored: torch.dtype, lots: torch.Generator
    ) -> None:
        super().__init__()
        rows, columns = weight.shape
        drawn = torch.rand(rank, columns, generator=lots) * 2 - 1
        self.A = nn.Parameter(drawn.to(weight) / columns**0.5)
        self.B = nn.Parameter(weight.new_zeros(rows, rank))
        self._scale, self._stored = scale, stored

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight [R, C]."""
        update = (self.B @ self.A).masked_fill(weight == 0, 0)
        adapted = weight + self._scale * update
        return adapted if self.training else adapted.to(self._stored).to(weight.dtype)


def attach(
    model: nn.Module, sites: Iterable[Site], ranks: list[int], scale: float, stored: torch.dtype, seed: int
) -> None:
    """Freeze a model but for new adapters.

    Args:
        model: the model.
        sites: the layers that get one; weights that are no matrix get none.
        ranks: by block.
        scale: of every adapter's product.
        stored: the dtype of the checkpoint.
        seed: of their first values.
    """
    lots = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for site in sites:
        weight = site.layer.get_parameter(site.leaf)
        if weight.ndim == 2 and not parametrize.is_parametrized(site.layer, site.leaf):
            adapter = Adapter(weight, ranks[site.block], scale, stored, lots)
            parametrize.register_parametrization(site.layer, site.leaf, adapter)


def merge(model: Any) -> None:
    """Replace adapted weights by their sums, rounded as the checkpoint is."""
    model.eval()
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
