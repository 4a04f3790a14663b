"""What a site is: a view of one place to prune, that says how its weights are read, written and observed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from llmprune.methods.base import Weights


class Holder(Protocol):
    """Holds the weights of a resident block (`llmprune.checkpoint.store.Store`)."""

    def weight(self, site: Site) -> Tensor:
        """Read the weight of a site [O, I] as the checkpoint stores it."""

    def put(self, site: Site, weight: Tensor) -> None:
        """Give a site its new weight [O, I]."""

    def shift(self, site: Site, bias: Tensor) -> None:
        """Add to the bias [O] of a site's layer, which may have none yet."""


@dataclass(frozen=True, eq=False)
class Site:
    """One place to prune: here a linear layer of a block.

    Override what differs: `matrix` and `placed` where the weights are a part of a parameter, `arriving` where
    the inputs are not the first argument of the module's forward pass.
    """

    name: str
    """Unique in the model, and so the key of budgets and reports."""

    index: int
    """Its number in the model, in the order of modules."""

    block: int
    path: str
    """The module that holds the weights, and whose forward pass is observed."""

    module: Callable[[str], nn.Module]
    """Look up a module of the model by its path; what is there changes when a model is opened."""

    inputs: int
    outputs: int
    transposed: bool = False
    """Whether the weight is stored as [inputs, outputs] (GPT-2's Conv1D)."""

    leaf: str = "weight"
    """The parameter of that module."""

    @property
    def layer(self) -> nn.Module:
        """The module that holds the weights."""
        return self.module(self.path)

    @property
    def key(self) -> str:
        """The name of the parameter in the model."""
        return f"{self.path}.{self.leaf}"

    @property
    def bias_key(self) -> str:
        """The name of the bias in the model, whether there is one or not."""
        return f"{self.path}.bias"

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of the layer as it is now."""
        return getattr(self.layer, "bias", None)

    @property
    def kind(self) -> str:
        """The site's name inside its block, such as `self_attn.q_proj`."""
        return self.name.split(f".{self.block}.", 1)[-1]

    @property
    def weight(self) -> Tensor:
        """The parameter as it is now, in its own layout."""
        weight = getattr(self.layer, self.leaf)
        assert isinstance(weight, Tensor)
        return weight.data

    @property
    def weights(self) -> int:
        """How many parameters can go here."""
        return self.inputs * self.outputs

    def matrix(self, stored: Tensor) -> Tensor:
        """View the site's part of the stored parameter as a matrix [O, I]."""
        return stored.T if self.transposed else stored

    def placed(self, matrix: Tensor, stored: Callable[[], Tensor]) -> Tensor:
        """Return the parameter with the site's part replaced by `matrix` [O, I].

        Args:
            matrix: what the site's weights become.
            stored: reads the parameter as it is now, other sites' parts included.
        """
        return (matrix.T if self.transposed else matrix).contiguous()

    def read(self, store: Holder) -> Weights:
        """What a method sees of the resident site: its weights [O, I] as the checkpoint stores them."""
        return Weights(store.weight(self), self.index)

    def arriving(self, *args: Any, **kwargs: Any) -> Tensor:
        """The site's inputs [..., I], given the arguments of the module's forward pass.

        Sites that return the same tensor share a statistic.
        """
        x: Tensor = args[0]
        return x

    def write(self, store: Holder, weight: Tensor, bias: Tensor | None) -> None:
        """Give the resident site its new weight [O, I], and add to its bias [O]."""
        store.put(self, weight)
        if bias is not None:
            store.shift(self, bias)
