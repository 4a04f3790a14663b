"""Units go whose rows add least to the singular values of the projection they belong to, a few at a time.
Looks at no data.

The greedy counterpart of the learned policy of arXiv:2501.15296.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llmprune.methods.base import Method, Weights
from llmprune.tensors.statistics import Nothing


@dataclass(frozen=True)
class Spectral(Method[Nothing]):
    """To first order, the singular values of W lose w (W^T W)^(-1/2) w^T / 2 in all when a row w goes."""

    pattern: ClassVar = {"name": "units", "parts": "ffn"}
    serves: ClassVar = ("units",)

    rounds: Annotated[int, Field(ge=1)] = 8
    """How often the spectrum is computed anew while all rows go, one after another."""

    def score(self, weights: Weights, statistic: Nothing) -> Tensor:
        """The place of every row in the order in which rows go, float32 [I]."""
        rows = (weights.rows[0] if weights.rows else weights.matrix.T).float()
        place = torch.zeros(len(rows), device=rows.device)
        here = torch.arange(len(rows), device=rows.device)
        for number in range(self.rounds, 0, -1):
            added = _added(rows[here])
            order = added.argsort(stable=True)
            going = order[: -(-len(here) // number)]
            place[here[going]] = len(rows) - len(here) + torch.arange(len(going), device=rows.device).float()
            here = here[order[len(going) :]].sort().values
        return place


def _added(rows: Tensor) -> Tensor:
    """What every row adds to the sum of the singular values, to first order, up to a factor; [I]."""
    squares, directions = torch.linalg.eigh(rows.T @ rows)
    roots = squares.clamp_min(float(squares[-1]) * 1e-12).sqrt()
    added: Tensor = ((rows @ directions).square() / roots).sum(1)
    return added
