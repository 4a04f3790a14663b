"""Channels inside the experts of a mixture: each expert chooses its own, and all keep as many.

Letters used in shapes: E experts, D hidden size, I channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmprune.model.expert_site import ExpertSite
from llmprune.model.experts import projections
from llmprune.model.unit_site import UnitSite


@dataclass(frozen=True, eq=False)
class ExpertChannels(UnitSite, ExpertSite):
    """The channels of one expert: inputs of its last matrix, outputs of its first."""

    alike: ClassVar = True

    @property
    def kind(self) -> str:
        """`channels of experts`"""
        return "channels of experts"

    @property
    def cost(self) -> int:
        """Parameters of one channel: a column of the last matrix, and its rows of the first."""
        layer: Any = self.layer
        parts = int(1 + layer.has_gate)
        return self.outputs + parts * (self.outputs + int(layer.has_bias))

    def rows(self) -> tuple[Tensor, ...]:
        """The weights [I, D] of gate and up projection, or of the one projection, as they are now."""
        layer: Any = self.layer
        first = layer.get_parameter(projections(layer)[0]).data[self.expert]
        matrix = first.T if layer.is_transposed else first
        parts = 1 + layer.has_gate
        return tuple(matrix[self._rows(torch.arange(self.units), part)] for part in range(parts))

    def _rows(self, channels: Tensor, part: int) -> Tensor:
        """The outputs of the first matrix that a part (gate, up) has for some channels."""
        layer: Any = self.layer
        if not layer.has_gate or layer.is_concatenated:
            return channels + part * self.units
        return 2 * channels + part

    def first_rows(self, channels: Tensor) -> Tensor:
        """All outputs of the first matrix that some channels need, in the layout that the module reads."""
        layer: Any = self.layer
        parts = [self._rows(channels, part) for part in range(1 + layer.has_gate)]
        interleaved = layer.has_gate and not layer.is_concatenated
        return torch.stack(parts, dim=1).flatten() if interleaved else torch.cat(parts)
