"""Find the blocks of a decoder and the sites inside them.

No knowledge of model families is needed: the blocks are the model's list of `num_hidden_layers` modules. Only
code that removes whole units looks up the family's row, or derives it from the model's class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Protocol

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llmprune.errors import RequestError
from llmprune.model import derived
from llmprune.model.decoder_config import decoder_config
from llmprune.model.experts import is_mixture, routes
from llmprune.model.families import FAMILIES, Coupling, Family, Part
from llmprune.model.site import Site


class SiteKind(Protocol):
    """What finds the sites of one kind (`llmprune.model.sites.base.Sites`)."""

    @property
    def sample_tokens(self) -> int:
        """Tokens of a site's inputs to keep, from which its output error is computed."""

    def find(self, anatomy: Anatomy) -> Iterable[Site]:
        """Find the sites of a model, block by block, in the order of its modules."""


class Anatomy:
    """The blocks of one model, and the sites inside them.

    The weights may be on the meta device at first; `attach` replaces the model by one that holds them. Blocks
    and layers are looked up by name each time, so the same sites serve both models.

    Args:
        model: the model.
        kind: finds the sites.

    Raises:
        RequestError: the model is not a decoder, or its sites cannot be found.
    """

    def __init__(self, model: PreTrainedModel, kind: SiteKind) -> None:
        config = decoder_config(model)
        self.model = model
        self.family: str = model.config.model_type
        context = getattr(config, "max_position_embeddings", None)
        self.context: int | None = context if context and context > 0 else None
        self.vocabulary: int = config.vocab_size
        self.hidden_size: int = getattr(config, "hidden_size", 0)
        self.prefix = _blocks_name(model, getattr(config, "num_hidden_layers", 0))
        self.parameters = sum(p.numel() for p in model.parameters())
        self.kind = kind
        # Last: `find` reads the attributes above.
        self.sites: list[Site] = list(kind.find(self))
        self._by_block: list[list[Site]] = [[] for _ in self.blocks]
        for site in self.sites:
            self._by_block[site.block].append(site)

    def attach(self, model: PreTrainedModel) -> None:
        """Replace the model by one of the same architecture that holds the weights."""
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

    def block_config(self, block: int) -> PreTrainedConfig:
        """The config that holds the sizes of one block."""
        config = decoder_config(self.model)
        # Where blocks differ in size, the sizes in the model's own config are not those of this block.
        return config.per_layer_config[block] if config.is_heterogeneous else config

    def skipped(self, block: int) -> tuple[str, ...]:
        """The modules of one block that an earlier pruning removed, by their names in the block."""
        return tuple(getattr(self.block_config(block), "skip", ()))

    def has(self, block: int, part: Part) -> bool:
        """Whether one block still has a part."""
        coupling = self.coupling(part)
        there = {name for name, _ in self.blocks[block].named_modules()}
        return coupling.consumer in there and not set(coupling.modules) & set(self.skipped(block))

    def coupling(self, part: Part) -> Coupling:
        """The layers of a part that shrink together.

        Raises:
            RequestError: they are not known.
        """
        row = self.family_row()
        if why := row.missing.get(part):
            names: dict[Part, str] = {"ffn": "channels", "attention": "heads"}
            other: Part = "attention" if part == "ffn" else "ffn"
            way_out = "add a row to FAMILIES" if other in row.missing else f"prune with pattern.parts={other}"
            raise RequestError(
                "pattern", f"the {names[part]} of {self.family!r} models are not known ({why}); {way_out}"
            )
        found: Coupling = getattr(row, part)
        return found

    def family_row(self) -> Family:
        """The row of FAMILIES for this model, or what its class shows."""
        return self._row

    @cached_property
    def _row(self) -> Family:
        names = (self.family, decoder_config(self.model).model_type)
        known = next((FAMILIES[name] for name in names if name in FAMILIES), None)
        return known or derived.family(self.model, self.prefix)

    @property
    def shared_weight(self) -> str:
        """The first parameter of a block that is also another's; empty if there is none."""
        tied, inside = getattr(self.model, "all_tied_weights_keys", {}), f"{self.prefix}."
        return next((a for a, b in tied.items() if a.startswith(inside) and b.startswith(inside)), "")

    @property
    def block_weights(self) -> int:
        """Number of weights in the blocks; biases, normalisation vectors and routers do not count."""
        return sum(p.numel() for block in self.blocks for p in weighed(block))

    @property
    def coverage(self) -> float:
        """Share of the block weights that belong to a site, 0 to 1."""
        inside = [site for site in self.sites if site.path.startswith(f"{self.prefix}.")]
        # Whole blocks hold vectors too, which `block_weights` leaves out.
        return min(1.0, sum(site.weights for site in inside) / max(self.block_weights, 1))


def _config_around(model: PreTrainedModel, path: str) -> object:
    """The config of the innermost module around a path that has one."""
    words = path.split(".")
    around = (model.get_submodule(".".join(words[:end])) for end in range(len(words) - 1, 0, -1))
    return next((module.config for module in around if hasattr(module, "config")), model.config)


def weighed(block: nn.Module) -> Iterator[nn.Parameter]:
    """The matrices of a block, but for routers and the biases of experts."""
    mixture = is_mixture(block)
    for name, parameter in block.named_parameters():
        aside = mixture and (routes(name) or name.endswith("bias"))
        if parameter.ndim > 1 and not aside:
            yield parameter


def _blocks_name(model: PreTrainedModel, depth: int) -> str:
    """The name of the list of decoder blocks."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not lists or not depth:
        raise RequestError(
            "model",
            f"{type(model).__name__} has no list of {depth} decoder blocks; only decoders can be pruned",
        )
    # Other parts of a model, such as a vision tower, have configs of their own.
    kinds = {type(model.config), type(decoder_config(model))}
    own = [pair for pair in lists if type(_config_around(model, pair[0])) in kinds]
    # A model can hold other lists of that length, such as one norm for each block: take the largest.
    largest: tuple[str, nn.Module] = max(
        own or lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters())
    )
    return largest[0]
