"""A model whose blocks stay in the files of their checkpoint, which are never written to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from llmprune.checkpoint import shards
from llmprune.checkpoint.conversion import Conversion
from llmprune.checkpoint.shards import Stored
from llmprune.checkpoint.store import Store
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site


class CheckpointStore(Store):
    """Loads the parameters of one block at a time, and takes them out of the model again.

    Args:
        anatomy: of a model whose parameters are on the meta device.
        source: the tensors of its checkpoint, by key.
        conversion: from these to the parameters.
        device: on which the blocks compute.
    """

    def __init__(
        self, anatomy: Anatomy, source: dict[str, Stored], conversion: Conversion, device: torch.device
    ) -> None:
        super().__init__(anatomy)
        self._source, self._conversion, self._device = source, conversion, device
        # Parameters that are joined from several tensors, in the dtype of the checkpoint, while resident.
        self._joined: dict[str, Tensor] = {}

    def load(self, modules: Mapping[str, nn.Module]) -> dict[tuple[nn.Module, str], nn.Parameter]:
        """Load the parameters and buffers of modules, given by their paths, in the dtypes that they have.

        Returns:
            The parameters without values that were replaced, by module and name.
        """
        blank = {}
        for path, module in modules.items():
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta and f"{path}.{leaf}" in self._conversion:
                    value = self.parameter(f"{path}.{leaf}").to(self._device, parameter.dtype)
                    module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
                    blank[module, leaf] = parameter
            for leaf, buffer in list(module.named_buffers(recurse=False)):
                if f"{path}.{leaf}" in self._conversion:
                    setattr(module, leaf, self.parameter(f"{path}.{leaf}").to(self._device, buffer.dtype))
        return blank

    def parameter(self, name: str) -> Tensor:
        """A parameter or buffer in the dtype of the checkpoint."""
        if self._conversion.key(name):
            return self._conversion.read(name, self._source)[name]
        if name not in self._joined:
            self._joined |= self._conversion.read(name, self._source)
        return self._joined[name]

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
        return self.parameter(site.key).to(site.weight.device)

    def restore(self, sites: list[Site], file: Path) -> None:
        """Set the weights and biases of resident sites to those in a shard."""
        found = shards.read_file(file)
        for site in {site.key: site for site in sites}.values():
            self._install(site, self._conversion.read(site.key, found)[site.key])
            (bias,) = self._conversion.written({site.bias_key: torch.empty(0)})
            if bias in found:
                self._set_bias(site, found[bias].read())

    def tensors(self, block: int) -> dict[str, Tensor]:
        """The tensors of a resident block in the dtype of the checkpoint, by their names in the model."""
        changed: dict[str, Tensor] = {}
        for (layer, _), (site, weight) in self._changed.items():
            changed[site.key] = weight
            if layer in self._dense_biases:
                changed[site.bias_key] = layer.get_parameter("bias").data.to(weight.dtype)
        names = [
            name for name in self._conversion.names if name.startswith(f"{self.anatomy.prefix}.{block}.")
        ]
        return {
            name: changed[name] if name in changed else self.parameter(name)
            for name in dict.fromkeys([*names, *changed])
        }

    def written(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the keys of the checkpoint, given by their names in the model."""
        return self._conversion.written(tensors)

    def rest(self) -> dict[str, Tensor]:
        """All tensors outside the blocks, by their keys in the checkpoint."""
        prefix = f"{self.anatomy.prefix}."
        names = [name for name in self._conversion.names if name.startswith(prefix)]
        inside = {key for name in names for key in self._conversion.keys(name)}
        return {key: stored.read() for key, stored in self._source.items() if key not in inside}
