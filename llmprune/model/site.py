"""What a site is: one place to prune, and how its weights are read, written and observed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from llmprune.methods.base import Weights


class WeightStore(Protocol):
    """What holds the weights of a resident block (`llmprune.checkpoint.store.Store`)."""

    def weight(self, site: Site) -> Tensor:
        """Read the weight of a site [O, I] as the checkpoint stores it."""

    def set_weight(self, site: Site, weight: Tensor) -> None:
        """Give a site its new weight [O, I]."""

    def add_to_bias(self, site: Site, bias: Tensor) -> None:
        """Add to the bias [O] of a site's layer; create the bias if there is none."""


@dataclass(frozen=True, eq=False)
class Site:
    """One place to prune: here a linear layer of a block.

    Override what differs: `matrix` and `shares_parameter` where the weights are a part of a parameter,
    `input_from_call` where the inputs are not the first argument of the module's forward pass.
    """

    name: str
    """Unique in the model; budgets and reports use it as a key."""

    index: int
    """Its number among the sites of the model, in the order of modules."""

    block: int
    path: str
    """The module that holds the weights, and whose forward pass is observed."""

    module: Callable[[str], nn.Module]
    """Looks up a module of the model by its path; the module itself changes when weights are loaded."""

    inputs: int
    outputs: int
    transposed: bool = False
    """Whether the weight is stored as [inputs, outputs] (GPT-2's Conv1D)."""

    leaf: str = "weight"
    """The parameter of that module."""

    share: float = 1.0
    """Of the tokens of the block, about how many reach it."""

    shares_parameter: ClassVar[bool] = False
    """Whether other sites are parts of the same parameter."""

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
        """How many parameters can be removed here."""
        return self.inputs * self.outputs

    def matrix(self, stored: Tensor) -> Tensor:
        """View the site's part of the stored parameter as a matrix [O, I]."""
        return stored.T if self.transposed else stored

    def read(self, store: WeightStore) -> Weights:
        """The input of a method: the weights [O, I] of the resident site, as the checkpoint stores them."""
        return Weights(store.weight(self), self.index)

    def input_from_call(self, *args: object, **kwargs: object) -> Tensor:
        """The site's inputs [..., I], given the arguments of the module's forward pass.

        Sites that return the same tensor object share a statistic.
        """
        x = args[0]
        assert isinstance(x, Tensor)
        return x

    def write(self, store: WeightStore, weight: Tensor, bias: Tensor | None) -> None:
        """Set the resident site's weight [O, I], and add `bias` [O] to its bias."""
        store.set_weight(self, weight)
        if bias is not None:
            store.add_to_bias(self, bias)
