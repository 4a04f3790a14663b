"""Which tensors of a checkpoint make up each parameter of a model, by transformers' own table of conversions.

Most parameters are one tensor, perhaps under another name. Some are joined from several (the experts of a
mixture, which files store one by one), some are parts of one (queries, keys and values).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from llmprune.checkpoint.shards import DTYPES, Stored

Part = tuple[str, str | None]  # a key of the checkpoint, and the converter's pattern that it matches


class Conversion:
    """Reads parameters from a checkpoint, and names changed ones as the checkpoint does.

    Args:
        model: of the checkpoint's architecture; its weights may be on the meta device.
        keys: of all tensors of the checkpoint.
        quantizer: transformers' own, which unpacks packed tensors; None where none are, or to write.
    """

    def __init__(self, model: PreTrainedModel, keys: Collection[str], quantizer: Any = None) -> None:
        self._model = model
        known = model.state_dict()
        table = get_model_conversion_mapping(model, None, quantizer)
        self._renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in table if isinstance(entry, WeightConverter)]
        self._by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        self._parts: dict[str, list[Part]] = {}
        # Experts are joined in the order of their numbers: 2 before 10.
        for key in sorted(keys, key=dot_natural_key):
            name, pattern = self._name(key, converters, known)
            if name in known:
                self._parts.setdefault(name, []).append((key, pattern))
        self._first = {name: first for first in self._parts for name in self._targets(first, known)}
        # A checkpoint of the trunk alone leaves the trunk's name out of every key.
        base = f"{model.base_model_prefix}."
        self._omitted = "" if any(key.startswith(base) for key in keys) else base
        self._owners = {key: name for name, parts in self._parts.items() for key, _ in parts}
        if quantizer is None:  # what was used to read is what must be reverted to write
            model._weight_conversions = [entry for entry in table if entry.was_used()]

    def _name(
        self, key: str, converters: list[WeightConverter], known: Mapping[str, object]
    ) -> tuple[str, str | None]:
        """The (first) parameter that a tensor belongs to, and the converter's pattern that it matches."""
        base = self._model.base_model_prefix
        name, pattern = rename_source_key(key, self._renamings, converters, base, known)
        if name not in known and key in known:
            return key, None
        return name, pattern

    def _targets(self, first: str, known: Mapping[str, object]) -> list[str]:
        """The parameters that are made together with the one under which their tensors are listed."""
        pattern = self._parts[first][0][1]
        if pattern is None:
            return [first]
        own, *others = self._by_pattern[pattern].target_patterns
        return [first, *(name for other in others if (name := first.replace(own, other)) in known)]

    def __contains__(self, name: str) -> bool:
        return name in self._first

    @property
    def names(self) -> Iterable[str]:
        """The parameters and buffers that the checkpoint holds."""
        return self._first

    def owner(self, key: str) -> str:
        """The (first) parameter that a tensor of the checkpoint belongs to."""
        return self._owners[key]

    def keys(self, name: str) -> list[str]:
        """The tensors of the checkpoint that a parameter is made of."""
        return [key for key, _ in self._parts[self._first[name]]]

    def misfit(self, stored: Mapping[str, Stored]) -> str | None:
        """The first parameter that is not as large as the tensors it is made of; None where all fit.

        Joining and splitting lose no element, so a missing expert, or one too many, shows without reading.
        Packed tensors are left out.

        Args:
            stored: the tensors of the checkpoint.
        """
        made: dict[str, list[str]] = {}
        for name, first in self._first.items():
            made.setdefault(first, []).append(name)
        known = self._model.state_dict()
        for first, names in made.items():
            parts = [stored[key] for key in self.keys(first)]
            if any(part.type not in DTYPES for part in parts):
                continue
            if self.key(first):
                fits = parts[0].shape == known[first].shape
            else:
                fits = sum(part.numel for part in parts) == sum(known[name].numel() for name in names)
            if not fits:
                return first
        return None

    def key(self, name: str) -> str | None:
        """The tensor of the checkpoint that a parameter is; None if it is made of others, or new."""
        parts = self._parts.get(name, [])
        return parts[0][0] if parts and parts[0][1] is None else None

    def read(self, name: str, stored: Mapping[str, Stored]) -> dict[str, Tensor]:
        """A parameter in its stored dtype, with those that are made together with it.

        Args:
            name: of the parameter.
            stored: the tensors of a checkpoint of this layout.
        """
        first = self._first[name]
        (key, pattern), *_ = parts = self._parts[first]
        if pattern is None:
            return {name: stored[key].read()}
        converter = copy.deepcopy(self._by_pattern[pattern])
        for key, pattern in parts:
            converter.add_tensor(first, key, pattern, stored[key].read)
        made = converter.convert(first, model=self._model, config=self._model.config)
        return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}

    def written(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the keys of the checkpoint, given by parameter; a new bias stands beside its weight."""
        plain = {name: key for name in tensors if (key := self.key(name) or self._beside(name))}
        joined = {name: tensor for name, tensor in tensors.items() if name not in plain}
        found = {plain[name]: tensor for name, tensor in tensors.items() if name in plain}
        return found | self._split(joined)

    def _beside(self, name: str) -> str | None:
        """The key of a new bias."""
        weight = self.key(f"{name.removesuffix('bias')}weight")
        return weight and weight.removesuffix("weight") + "bias"

    def _split(self, joined: dict[str, Tensor]) -> dict[str, Tensor]:
        if not joined:
            return {}
        made: dict[str, Tensor] = revert_weight_conversion(self._model, joined)
        return {key.removeprefix(self._omitted): tensor for key, tensor in made.items()}
