"""What an allocator is: the sparsity of every site, given a target for all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict
from torch import Tensor

from llmprune.anatomy import Anatomy, Site
from llmprune.checkpoint.store import Store
from llmprune.methods.base import Method, Weights
from llmprune.statistics import Nothing, Statistic
from llmprune.walk import Walk

Budget = dict[str, float]  # the sparsity of every site, by its name


@dataclass(frozen=True)
class Problem:
    """All that an allocator may look at: the model, its calibration batches, the method and the target."""

    anatomy: Anatomy
    store: Store
    batches: list[Tensor]
    probe: Tensor
    method: Method[Any]
    sparsity: float

    def survey(self, needs: type[Statistic]) -> Iterator[tuple[Site, Statistic]]:
        """Every site, resident, with its statistic in the dense model."""
        batches = [] if needs is Nothing else self.batches
        walk = Walk(self.anatomy, self.store, batches, self.probe)
        for stage in walk.stages("measuring the dense model"):
            for site, seen in stage.visit(needs, "dense", together=False):
                yield site, seen.statistic

    def weights(self, site: Site) -> Weights:
        """The tensors of a resident site, which is all a method gets to see."""
        return Weights(self.store.weight(site), site.index)


@dataclass(frozen=True)
class Allocator:
    """Override `allocate`. The fields of a subclass are its options in a recipe."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    uneven: ClassVar[bool] = True
    """Whether sites get different sparsities, which an N:M pattern cannot have."""

    compares_scores: ClassVar[bool] = False
    """Whether it needs the method's scores before anything is pruned."""

    needs_text: ClassVar[bool] = False
    """Whether it measures activations even for a method that does not."""

    def allocate(self, problem: Problem) -> Budget:
        """The sparsity of every site, such that all sites together reach `problem.sparsity`."""
        raise NotImplementedError
