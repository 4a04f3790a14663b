"""One statistic that serves all who want one: summaries of several kinds of the same inputs.

Letters used in shapes: T tokens, O outputs, I input features.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from llmprune.tensors.statistics import Nothing, S, Statistic


class Several(Statistic):
    """Summaries of several kinds of the same inputs."""

    kinds: ClassVar[tuple[type[Statistic], ...]] = ()

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self._parts = [kind(features, device) for kind in self.kinds]

    def update(self, x: Tensor) -> None:
        """Account for the activations `x` [T, I]."""
        super().update(x)
        for part in self._parts:
            part.update(x)

    @property
    def parts(self) -> list[Statistic]:
        """The summaries that this one consists of."""
        return self._parts

    def of(self, kind: type[S]) -> S:
        """The part of this summary that is of a kind."""
        own = (part for part in self._parts if isinstance(part, kind))
        return next(own, None) or super().of(kind)

    def finite(self) -> bool:
        """Whether every activation so far was a finite number."""
        return all(part.finite() for part in self._parts)

    def target(self, weight: Tensor) -> Tensor:
        """The weight [O, I] whose outputs on these inputs a pruned one is to come near to."""
        for part in self._parts:
            weight = part.target(weight)
        return weight

    @classmethod
    def fewest(cls, features: int) -> int:
        """Tokens below which one of them says little of a layer with so many inputs."""
        return max(kind.fewest(features) for kind in cls.kinds)

    @classmethod
    def bytes_for(cls, features: int) -> int:
        """Memory that a summary of `features` inputs holds, in bytes."""
        return sum(kind.bytes_for(features) for kind in cls.kinds)


def kinds_of(kind: type[Statistic]) -> tuple[type[Statistic], ...]:
    """The kinds of summaries that one consists of."""
    return kind.kinds if issubclass(kind, Several) else (kind,)


def joined(*wanted: type[Statistic]) -> type[Statistic]:
    """One statistic that serves all who want one of these; `Nothing` if nobody wants any."""
    asked = list(dict.fromkeys(kind for kind in wanted if kind is not Nothing))
    kinds = tuple(k for k in asked if not any(o is not k and issubclass(o, k) for o in asked))
    if len(kinds) < 2:
        return kinds[0] if kinds else Nothing
    return type("Several", (Several,), {"kinds": kinds, "small": all(kind.small for kind in kinds)})
