"""Where the blocks of a decoder are, and the sites inside them.

Needs no knowledge of families: the blocks are the model's list of `num_hidden_layers` modules. Only what cuts
whole units asks for the family's row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedModel

from llmprune.errors import RequestError
from llmprune.model.families import FAMILIES, Family
from llmprune.model.site import Site


class Kind(Protocol):
    """Finds the sites of one kind (`llmprune.model.sites.base.Sites`)."""

    @property
    def sample(self) -> int:
        """Tokens of a site's inputs that are kept to report its output error."""

    def find(self, anatomy: Anatomy) -> Iterable[Site]:
        """The sites of a model, block by block, in the order of its modules."""


class Anatomy:
    """The blocks of one model, and the sites inside them.

    The weights may be on the meta device at first; `attach` brings the model that holds them. Blocks and
    layers are looked up by name each time, so the sites stay the same.

    Args:
        model: the model.
        kind: of the sites, which it finds.

    Raises:
        RequestError: it is no decoder, or its sites cannot be found.
    """

    def __init__(self, model: PreTrainedModel, kind: Kind) -> None:
        config = model.config.get_text_config(decoder=True)
        self.model = model
        self.family: str = model.config.model_type
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.vocabulary: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self.prefix = _blocks_name(model, config.num_hidden_layers)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.kind = kind
        self.sites: list[Site] = list(kind.find(self))
        self._by_block: list[list[Site]] = [[] for _ in self.blocks]
        for site in self.sites:
            self._by_block[site.block].append(site)

    def attach(self, model: PreTrainedModel) -> None:
        """Take the place of the model with one of the same architecture that holds the weights."""
        self.model = model

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        blocks = self.module(self.prefix)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def module(self, path: str) -> nn.Module:
        """Look up a module by its path in the model."""
        found: nn.Module = self.model.get_submodule(path)
        return found

    @property
    def trunk(self) -> nn.Module:
        """The model without its language-modelling head."""
        trunk: nn.Module = self.model.base_model
        return trunk

    def block_sites(self, block: int) -> list[Site]:
        """The sites of one block, in the order of its modules."""
        return self._by_block[block]

    def config_of(self, block: int) -> Any:
        """The config with the sizes of one block."""
        config = self.model.config.get_text_config(decoder=True)
        return config.per_layer_config[block] if config.is_heterogeneous else config

    def row(self) -> Family:
        """What shrinks together in the family of this model.

        Raises:
            RequestError: nothing is known about it.
        """
        if self.family not in FAMILIES:
            raise RequestError(
                "pattern",
                f"the units of {self.family!r} models are not known; add a row to FAMILIES in "
                f"{FAMILIES_MODULE} (there are: {', '.join(sorted(FAMILIES))})",
            )
        return FAMILIES[self.family]

    @property
    def block_weights(self) -> int:
        """All weights of the blocks: their parameters but biases and normalisation vectors."""
        return sum(p.numel() for block in self.blocks for p in block.parameters() if p.ndim > 1)

    @property
    def coverage(self) -> float:
        """Share of the block weights that the sites reach."""
        inside = [site for site in self.sites if site.path.startswith(f"{self.prefix}.")]
        return sum(site.weights for site in inside) / max(self.block_weights, 1)


FAMILIES_MODULE = Family.__module__


def _blocks_name(model: nn.Module, depth: int) -> str:
    """The name of the list of decoder blocks: of the lists of that length, the one with most weights."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not lists:
        raise RequestError(
            "model",
            f"{type(model).__name__} has no list of {depth} decoder blocks; only decoders can be pruned",
        )
    longest: tuple[str, nn.Module] = max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    return longest[0]
