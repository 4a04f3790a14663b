"""Where the parts of a decoder are. The only module that may know one model family from another.

Loose-weight pruning needs no knowledge of families: the blocks are the model's list of `num_hidden_layers`
modules, and every linear layer inside them is a site.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmprune.errors import RequestError

COVERAGE = 0.95  # share of the block weights that the sites must reach


@dataclass(frozen=True, eq=False)
class Site:
    """One place to prune: a linear layer of a block."""

    name: str
    index: int
    block: int
    layer: nn.Module
    inputs: int
    outputs: int
    transposed: bool
    """Whether the layer stores its weight as [inputs, outputs] (GPT-2's Conv1D)."""

    @property
    def kind(self) -> str:
        """The layer's name inside its block, such as `self_attn.q_proj`."""
        return self.name.split(f".{self.block}.", 1)[-1]

    @property
    def weight(self) -> Tensor:
        """The layer's weight as it is now, in its own layout."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight.data

    @property
    def weights(self) -> int:
        """How many weights the layer has."""
        return self.inputs * self.outputs

    def matrix(self, stored: Tensor) -> Tensor:
        """The stored weight as a matrix [O, I], and back: the same turn both ways."""
        return stored.T if self.transposed else stored


class Anatomy:
    """The blocks of one model, and the sites inside them. The weights may be on the meta device."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config(decoder=True)
        self.model = model
        self.family: str = model.config.model_type
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.vocabulary: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self.prefix, self.blocks = _find_blocks(model, config.num_hidden_layers)
        self.sites = list(self._linear_sites())

    @property
    def trunk(self) -> nn.Module:
        """The model without its language-modelling head."""
        trunk: nn.Module = self.model.base_model
        return trunk

    def block_sites(self, block: int) -> list[Site]:
        """The sites of one block, in the order of its modules."""
        return [site for site in self.sites if site.block == block]

    def _linear_sites(self) -> Iterator[Site]:
        index = 0
        for number, block in enumerate(self.blocks):
            for name, layer in block.named_modules():
                if isinstance(layer, nn.Linear | Conv1D):
                    transposed = isinstance(layer, Conv1D)
                    stored = layer.weight.shape
                    outputs, inputs = (stored[1], stored[0]) if transposed else (stored[0], stored[1])
                    full = f"{self.prefix}.{number}.{name}"
                    yield Site(full, index, number, layer, inputs, outputs, transposed)
                    index += 1

    @property
    def block_weights(self) -> int:
        """All weights of the blocks: their parameters but biases and normalisation vectors."""
        return sum(p.numel() for block in self.blocks for p in block.parameters() if p.ndim > 1)

    @property
    def coverage(self) -> float:
        """Share of the block weights that the sites reach."""
        return sum(site.weights for site in self.sites) / max(self.block_weights, 1)

    def require_coverage(self) -> None:
        """Refuse a model of whose block weights the sites miss more than a twentieth.

        Raises:
            RequestError: it names the parameters that no site reaches.
        """
        if self.coverage >= COVERAGE:
            return
        reached = {id(site.layer.weight) for site in self.sites}
        missed: dict[str, int] = {}
        for block in self.blocks:
            for name, parameter in block.named_parameters():
                if parameter.ndim > 1 and id(parameter) not in reached:
                    missed[name] = missed.get(name, 0) + parameter.numel()
        largest = sorted(missed, key=lambda name: -missed[name])[:3]
        raise RequestError(
            "model",
            f"only {self.coverage:.0%} of the block weights of this {self.family!r} model are linear layers "
            f"that llmprune can prune; left out: {', '.join(largest)} (fused experts are not supported yet)",
        )


def _find_blocks(model: nn.Module, depth: int) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its name: of the lists of that length, the one with most weights."""
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
    return max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
