"""Where the parts of a decoder are. The only module that may know one model family from another.

Loose-weight pruning needs no knowledge of families: the blocks are the model's list of `num_hidden_layers`
modules, and every linear layer inside them is a site. Cutting whole units out does: which layers shrink
together is one row of FAMILIES.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmprune.errors import RequestError
from llmprune.model.sites import Part, Parts, Producer, Run, Site, UnitSite

COVERAGE = 0.95  # share of the block weights that the sites must reach


@dataclass(frozen=True)
class Coupling:
    """Layers of a block that shrink together."""

    consumer: str
    producers: Mapping[str, str]
    """What their outputs hold, one after another: queries, keys, values (`q k v`), or channels (`c`)."""


@dataclass(frozen=True)
class Family:
    """What shrinks together in one decoder block, and the fields of the config that tell about it."""

    attention: Coupling
    ffn: Coupling
    width: str = "intermediate_size"
    """The field that holds the number of channels."""

    rigid: str = ""
    """Why heads cannot be cut out of the attention, if so; it then has no producers."""

    biases: Mapping[Part, str] = field(default_factory=dict)
    """The fields that give every layer of a part a bias, where the class has them."""


_QKV = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v"}
_ATTENTION = Coupling("self_attn.o_proj", _QKV)
_GATED = Coupling("mlp.down_proj", {"mlp.gate_proj": "c", "mlp.up_proj": "c"})
_FUSED_GATED = Coupling("mlp.down_proj", {"mlp.gate_up_proj": "c c"})
_FOUR_H = Coupling("mlp.dense_4h_to_h", {"mlp.dense_h_to_4h": "c"})
_BIASED = Family(_ATTENTION, _GATED, biases={"attention": "attention_bias", "ffn": "mlp_bias"})
_HALF_BIASED = Family(_ATTENTION, _GATED, biases={"attention": "attention_bias"})
_UNBIASED = Family(_ATTENTION, _GATED)
_SQUARE = "the attention of its class is as wide as the hidden states"
_SPANNING = "one norm spans all heads of its attention"

FAMILIES: dict[str, Family] = {  # by the config's model_type
    "llama": _BIASED,
    "granite": _BIASED,
    "smollm3": _BIASED,
    "qwen3": _HALF_BIASED,
    "gemma": _HALF_BIASED,
    "gemma2": _HALF_BIASED,
    "gemma3_text": _HALF_BIASED,
    "cohere2": _HALF_BIASED,
    "mistral": _UNBIASED,
    "qwen2": _UNBIASED,
    "olmo2": Family(Coupling("self_attn.o_proj", {}), _GATED, rigid=_SPANNING),
    "glm4": Family(_ATTENTION, _FUSED_GATED),
    "phi3": Family(Coupling("self_attn.o_proj", {"self_attn.qkv_proj": "q k v"}), _FUSED_GATED),
    "phi": Family(Coupling("self_attn.dense", _QKV), Coupling("mlp.fc2", {"mlp.fc1": "c"})),
    "starcoder2": Family(_ATTENTION, Coupling("mlp.c_proj", {"mlp.c_fc": "c"})),
    "gpt2": Family(
        Coupling("attn.c_proj", {}), Coupling("mlp.c_proj", {"mlp.c_fc": "c"}), "n_inner", _SQUARE
    ),
    "gpt_neox": Family(Coupling("attention.dense", {}), _FOUR_H, rigid=_SQUARE),
    "opt": Family(Coupling("self_attn.out_proj", {}), Coupling("fc2", {"fc1": "c"}), "ffn_dim", _SQUARE),
    "falcon": Family(Coupling("self_attention.dense", {}), _FOUR_H, "ffn_hidden_size", _SQUARE),
}


class Anatomy:
    """The blocks of one model, and the sites inside them. The weights may be on the meta device.

    Args:
        model: the model.
        parts: which units are the sites; None for every linear layer.

    Raises:
        RequestError: it is no decoder, or none whose units are known.
    """

    def __init__(self, model: PreTrainedModel, parts: Parts | None = None) -> None:
        config = model.config.get_text_config(decoder=True)
        self.model = model
        self.family: str = model.config.model_type
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.vocabulary: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self.prefix, self.blocks = _find_blocks(model, config.num_hidden_layers)
        self.parts = parts
        self.sites: list[Site] = list(self._linear_sites() if parts is None else self._unit_sites(parts))

    @property
    def trunk(self) -> nn.Module:
        """The model without its language-modelling head."""
        trunk: nn.Module = self.model.base_model
        return trunk

    def block_sites(self, block: int) -> list[Site]:
        """The sites of one block, in the order of its modules."""
        return [site for site in self.sites if site.block == block]

    def config_of(self, block: int) -> Any:
        """The config with the sizes of one block."""
        config = self.model.config.get_text_config(decoder=True)
        return config.per_layer_config[block] if config.is_heterogeneous else config

    @property
    def block_outputs(self) -> int:
        """What the linear layers of one block put out for a token, all together."""
        return sum(site.outputs for site in self._linear_sites() if site.block == 0)

    def _linear_sites(self) -> Iterator[Site]:
        index = 0
        for number, block in enumerate(self.blocks):
            for name, layer in block.named_modules():
                if isinstance(layer, nn.Linear | Conv1D):
                    outputs, inputs, transposed = _sizes(layer)
                    full = f"{self.prefix}.{number}.{name}"
                    yield Site(full, index, number, layer, inputs, outputs, transposed)
                    index += 1

    def _unit_sites(self, parts: Parts) -> Iterator[UnitSite]:
        grouped = self.row().attention.producers  # heads that stay where they are need no groups
        for number in range(len(self.blocks)):
            config = self.config_of(number)
            heads = config.num_attention_heads
            groups = (grouped and getattr(config, "num_key_value_heads", None)) or heads
            if parts != "ffn":
                yield self._unit_site(number, "attention", groups, heads // groups)
            if parts != "attention":
                yield self._unit_site(number, "ffn", 0, 1)

    def _unit_site(self, number: int, part: Part, units: int, share: int) -> UnitSite:
        """The units of one part of one block.

        Args:
            number: of the block.
            part: attention or feed-forward network.
            units: how many there are; 0 for one to each input of the consumer.
            share: query heads that share a key and value head.
        """
        row: Coupling = getattr(self.row(), part)
        block, prefix = self.blocks[number], f"{self.prefix}.{number}."
        layer = block.get_submodule(row.consumer)
        outputs, inputs, transposed = _sizes(layer)
        units = units or inputs
        step = inputs // units
        producers = []
        for name, contents in row.producers.items():
            steps = [step // share if letter in "kv" else step for letter in contents.split()]
            starts = [units * sum(steps[:i]) for i in range(len(steps))]
            source = block.get_submodule(name)
            runs = tuple(map(Run, starts, steps))
            producers.append(Producer(prefix + name, source, *_sizes(source), runs))
        return UnitSite(
            name=prefix + row.consumer,
            index=2 * number + (part == "ffn"),
            block=number,
            layer=layer,
            inputs=inputs,
            outputs=outputs,
            transposed=transposed,
            part=part,
            units=units,
            producers=tuple(producers),
            biased=getattr(layer, "bias", None) is not None,
        )

    def row(self) -> Family:
        """What is known about the family of this model.

        Raises:
            RequestError: nothing is.
        """
        if self.family not in FAMILIES:
            raise RequestError(
                "pattern",
                f"the units of {self.family!r} models are not known; add a row to FAMILIES in {__name__} "
                f"(there are: {', '.join(sorted(FAMILIES))})",
            )
        return FAMILIES[self.family]

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
        if self.parts is not None or self.coverage >= COVERAGE:
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


def _sizes(layer: nn.Module) -> tuple[int, int, bool]:
    """Outputs and inputs of a linear layer, and whether it stores its weight as [inputs, outputs]."""
    assert isinstance(layer.weight, Tensor)
    first, second = layer.weight.shape
    return (second, first, True) if isinstance(layer, Conv1D) else (first, second, False)


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
