"""A whole decoder block, or one part of it, that stays or goes with all its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmprune.methods.base import Weights
from llmprune.model.anatomy import Anatomy
from llmprune.model.per_layer import Skipped
from llmprune.model.shapes import Removed
from llmprune.model.site import Site, WeightStore
from llmprune.model.widths import Budget


@dataclass(frozen=True, eq=False)
class BlockSite(Site):
    """One block, or the modules of one part. It has no matrix."""

    part: str = "block"
    modules: tuple[str, ...] = ()
    """What goes, by names in the block; empty for the whole block."""

    size: int = 0

    @property
    def kind(self) -> str:
        """`block`, `attention` or `ffn`."""
        return self.part

    @property
    def weights(self) -> int:
        """All parameters of what may go."""
        return self.size

    def read(self, store: WeightStore) -> Weights:
        """Nothing to see but the block's number."""
        return Weights(torch.ones(1, 1), self.index)

    def write(self, store: WeightStore, weight: Tensor, bias: Tensor | None) -> None:
        """Let the model compute without what goes."""
        if not weight.any():
            self._remove()

    @contextmanager
    def absent(self) -> Iterator[None]:
        """Let the resident block compute without the site for a while."""
        before = {module: vars(module).get("forward") for module in self._resident()}
        self._remove()
        try:
            yield
        finally:
            for module, forward in before.items():
                del module.forward
                if forward is not None:  # such as accelerate's, which moves tensors between devices
                    module.forward = forward

    def _resident(self) -> list[nn.Module]:
        """The modules that go."""
        return [self.layer.get_submodule(name) for name in self.modules] or [self.layer]

    def _remove(self) -> None:
        for module in self._resident():
            gone = Skipped(getattr(module, "layer_idx", None))
            module.forward = gone.forward if self.modules else _pass_on

    def removed(self, *, gone: bool) -> Removed:
        """All its parameters, or none."""
        return {"dropped": self.weights * gone, "zeros": 0, "units": [1, int(not gone)], "shape_after": []}


def _pass_on(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
    return hidden_states


def budget_without(anatomy: Anatomy, gone: Iterable[int]) -> Budget:
    """The budget that removes the sites of some blocks."""
    blocks = set(gone)
    return {site.name: float(site.block in blocks) for site in anatomy.sites}
