"""A model whose blocks stay in the files of their checkpoint, which are never written to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmprune.checkpoint.conversion import Conversion
from llmprune.checkpoint.placement import DISK, Places, place_of
from llmprune.checkpoint.shards import DTYPES, Stored
from llmprune.checkpoint.store import Store
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site


class CheckpointStore(Store):
    """Loads the parameters of one block at a time, and takes them out of the model again.

    Args:
        anatomy: of a model whose parameters are on the meta device.
        source: the tensors of its checkpoint, by key.
        quantizer: transformers' own, which unpacks packed tensors; None where none are.
        device: on which the blocks compute.
    """

    def __init__(
        self, anatomy: Anatomy, source: dict[str, Stored], quantizer: Any, device: torch.device
    ) -> None:
        super().__init__(anatomy)
        self._source, self._device = source, device
        self._reading = self._conversion = Conversion(anatomy.model, source)
        if quantizer is not None:
            self._reading = Conversion(anatomy.model, source, quantizer)
        # Parameters that are not one tensor of the checkpoint, while the block is resident.
        self._joined: dict[str, Tensor] = {}
        self._places: Places = {}
        self._held: dict[str, Tensor] = {}

    @property
    def names(self) -> set[str]:
        """The parameters and buffers that the checkpoint holds."""
        return set(self._reading.names)

    def misfit(self) -> str | None:
        """The first parameter that is not as large as the tensors it is made of; None where all fit."""
        return self._conversion.misfit(self._source)

    def hold(self, places: Places) -> None:
        """Keep what is read of the blocks where a device map puts it, and do not read it again."""
        self._places = places

    def load(self, modules: Mapping[str, nn.Module]) -> dict[tuple[nn.Module, str], nn.Parameter]:
        """Load the parameters and buffers of modules, given by their paths, in the dtypes that they have.

        Returns:
            The parameters without values that were replaced, by module and name.
        """
        blank = {}
        for path, module in modules.items():
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta and f"{path}.{leaf}" in self._reading:
                    value = self._value(f"{path}.{leaf}").to(self._device, parameter.dtype)
                    module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
                    blank[module, leaf] = parameter
            for leaf, buffer in list(module.named_buffers(recurse=False)):
                if f"{path}.{leaf}" in self._reading:
                    setattr(module, leaf, self._value(f"{path}.{leaf}").to(self._device, buffer.dtype))
        return blank

    def _value(self, name: str) -> Tensor:
        """A parameter or buffer in the dtype of the checkpoint, or unpacked into that of the computation."""
        inside = name.startswith(f"{self.anatomy.prefix}.")
        place = place_of(name, self._places) if inside else None
        if place in (None, DISK):
            return self._read(name)
        if name not in self._held:
            self._held[name] = self._read(name).to(place)
        return self._held[name]

    def _read(self, name: str) -> Tensor:
        """The same from the checkpoint's files."""
        if self._reading.key(name):
            return self._reading.read(name, self._source)[name]
        if name not in self._joined:
            self._joined |= self._reading.read(name, self._source)
        return self._joined[name]

    def _as_written(self, name: str) -> Tensor:
        """A parameter or buffer in the dtype in which a changed one is written."""
        value = self._value(name).cpu()  # as from a file, wherever it waited
        packed = any(self._source[key].type not in DTYPES for key in self._reading.keys(name))
        return value.bfloat16() if packed else value

    @contextmanager
    def resident(self, block: int) -> Iterator[None]:
        """Load the weights of one block, while the context is open; one rebuilt in the meantime goes."""
        dense = self.anatomy.blocks[block]
        try:
            with super().resident(block):
                yield
        finally:
            self.anatomy.blocks[block] = dense

    @contextmanager
    def _onloaded(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        blank = self.load(modules)
        try:
            yield
        finally:
            for (module, leaf), parameter in blank.items():
                module.register_parameter(leaf, parameter)
            for layer, bias in self._dense_biases.items():
                layer.register_parameter("bias", bias)
            self._dense_biases.clear()
            self._changed.clear()
            self._joined.clear()

    def _stored(self, site: Site) -> Tensor:
        # From the file: the resident copy is in the dtype of the computation.
        return self._as_written(site.key).to(site.weight.device)

    def tensors(self, block: int) -> dict[str, Tensor]:
        """The tensors of a resident block in the dtype of the checkpoint, by their names in the model."""
        changed: dict[str, Tensor] = {}
        for (layer, _), (site, weight) in self._changed.items():
            changed[site.key] = weight
            if layer in self._dense_biases:
                changed[site.bias_key] = layer.get_parameter("bias").data.to(weight.dtype)
        names = self._names(f"{self.anatomy.prefix}.{block}.")
        return {
            name: changed[name] if name in changed else self._as_written(name)
            for name in dict.fromkeys([*names, *changed])
        }

    def written(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the keys of the checkpoint, given by their names in the model."""
        return self._conversion.written(tensors)

    def stored(self, block: int) -> dict[str, Tensor]:
        """The tensors of a block as its checkpoint has them, packed ones too, by their keys."""
        return {key: self._source[key].read() for key in self._keys(f"{self.anatomy.prefix}.{block}.")}

    def shapes(self, block: int) -> dict[str, tuple[int, ...]]:
        """The shapes of a block's tensors as its checkpoint has them, by their keys."""
        return {key: self._source[key].shape for key in self._keys(f"{self.anatomy.prefix}.{block}.")}

    @contextmanager
    def standing_in(self, tensors: Mapping[str, Stored]) -> Iterator[None]:
        """Read other tensors under the keys of the checkpoint's own, while the context is open."""
        own, self._source = self._source, {**self._source, **tensors}
        try:
            yield
        finally:
            self._source = own

    def owner(self, key: str) -> str:
        """The (first) parameter that a tensor of the checkpoint belongs to."""
        return self._reading.owner(key)

    def rest(self) -> dict[str, Tensor]:
        """All tensors outside the blocks, by their keys in the checkpoint."""
        inside = set(self._keys(f"{self.anatomy.prefix}."))
        return {key: stored.read() for key, stored in self._source.items() if key not in inside}

    def _keys(self, prefix: str) -> list[str]:
        """The tensors of the checkpoint whose parameters have names that begin so."""
        names = self._names(prefix)
        return list(dict.fromkeys(key for name in names for key in self._reading.keys(name)))

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self._reading.names if name.startswith(prefix)]
