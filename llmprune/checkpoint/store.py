"""Access to the weights of a model, of which one block at a time is resident.

accelerate's hooks keep offloaded weights on the CPU or on disk, and load them for each forward pass of each
layer. Here a block is loaded once, pruned, run as often as needed, and released.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from llmprune.checkpoint import shards
from llmprune.checkpoint.conversion import Conversion
from llmprune.checkpoint.offload import align_hooks
from llmprune.errors import JobError, RequestError
from llmprune.methods.base import Weights
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site


class Store:
    """A model in memory, on one device or dispatched by accelerate; it gets the new weights itself."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        # New weights by module and parameter, in the dtype of the checkpoint; the module computes in its own.
        self._changed: dict[tuple[nn.Module, str], tuple[Site, Tensor]] = {}
        self._dense_biases: dict[nn.Module, nn.Parameter | None] = {}
        self._spill: Path | None = None

    @contextmanager
    def resident(self, block: int) -> Iterator[None]:
        """Load the weights of one block onto the device that computes, while the context is open."""
        name = f"{self.anatomy.prefix}.{block}"
        with self._onloaded(dict(self.anatomy.blocks[block].named_modules(prefix=name))):
            yield

    @contextmanager
    def head(self) -> Iterator[None]:
        """Load the weights of the language-modelling head, while the context is open."""
        head = self.anatomy.model.get_output_embeddings()
        named = self.anatomy.model.named_modules()
        with self._onloaded({name: module for name, module in named if module is head}):
            yield

    @contextmanager
    def _onloaded(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Load the weights of modules, given by their paths, while the context is open."""
        offloaded = [(m, hook) for m in modules.values() for hook in align_hooks(m) if hook.offload]
        if any(hook.place_submodules for _, hook in offloaded):
            raise RequestError(
                "model",
                "accelerate offloads whole blocks of it at once; dispatch it without preload_module_classes",
            )
        for module, hook in offloaded:
            hook.pre_forward(module)
            hook.offload = False  # while it is False, a forward pass neither loads nor releases weights
        try:
            yield
        finally:
            for module, hook in offloaded:
                self._write_back(module, hook)
                hook.offload = True
                hook.post_forward(module, None)
            self._changed.clear()

    def weight(self, site: Site) -> Tensor:
        """The weight of a resident site as a matrix [O, I], in the dtype of the checkpoint.

        Raises:
            JobError: it holds NaN or infinity.
        """
        weight = site.matrix(self._stored(site))
        # The sum of finite weights may overflow, that of others is never finite.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise JobError(f"the weight of {site.name} holds NaN or infinity; the checkpoint is damaged")
        return weight

    def weights(self, site: Site) -> Weights:
        """The tensors of a resident site, as a method gets them."""
        return site.read(self)

    def _stored(self, site: Site) -> Tensor:
        """The parameter that holds a site's weights, in the dtype of the checkpoint."""
        return site.weight

    def add_to_bias(self, site: Site, bias: Tensor) -> None:
        """Add to the bias [O] of a resident site's layer, rounded as it is stored; create it if needed."""
        own = site.bias
        shifted = bias if own is None else bias + own.data
        self._set_bias(site, shifted.to(self._stored(site).dtype))

    def _set_bias(self, site: Site, bias: Tensor) -> None:
        layer = site.layer
        self._dense_biases.setdefault(layer, site.bias)  # the first time only: later, it is not the dense one
        layer.bias = nn.Parameter(bias.to(site.weight.device, site.weight.dtype), requires_grad=False)

    def set_weight(self, site: Site, weight: Tensor) -> None:
        """Set the weight of a resident site, [O, I] in the dtype of the checkpoint."""
        changed = self._changed.get((site.layer, site.leaf))
        if not site.shares_parameter:
            self._install(site, site.matrix(weight).contiguous())
        elif changed is None:
            stored = self._stored(site).clone()
            site.matrix(stored).copy_(weight)
            self._install(site, stored)
        else:  # in place: a parameter with many sites would be copied for each of them
            for whole in (changed[1], site.weight):
                site.matrix(whole).copy_(weight)

    def _install(self, site: Site, stored: Tensor) -> None:
        """Set the whole parameter of a site, given in the dtype of the checkpoint."""
        layer, now = site.layer, site.weight
        trainable = layer.get_parameter(site.leaf).requires_grad
        setattr(layer, site.leaf, nn.Parameter(stored.to(now.device, now.dtype), trainable))
        self._changed[layer, site.leaf] = site, stored

    @contextmanager
    def as_before(self, sites: list[Site]) -> Iterator[None]:
        """Take back what is done to the weights and biases of resident sites while the context is open."""
        before = [(site.layer, site.leaf, site.layer.get_parameter(site.leaf), site.bias) for site in sites]
        try:
            yield
        finally:
            for layer, leaf, weight, bias in before:
                setattr(layer, leaf, weight)
                if getattr(layer, "bias", None) is not bias:
                    layer.register_parameter("bias", bias)
                self._dense_biases.pop(layer, None)
                self._changed.pop((layer, leaf), None)

    def tensors(self, block: int) -> dict[str, Tensor]:
        """The tensors of a resident block, by their names in the model."""
        prefix = f"{self.anatomy.prefix}.{block}."
        return {prefix + name: tensor for name, tensor in self.anatomy.blocks[block].state_dict().items()}

    def written(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the keys of a checkpoint, given by their names in the model."""
        made: dict[str, Tensor] = revert_weight_conversion(self.anatomy.model, dict(tensors))
        return made

    def stored(self, block: int) -> dict[str, Tensor]:
        """The tensors of a block by the keys of a checkpoint."""
        return self.written(self.tensors(block))

    def owner(self, key: str) -> str:
        """The (first) parameter that a tensor of a checkpoint belongs to."""
        return self._conversion.owner(key)

    @cached_property
    def _conversion(self) -> Conversion:
        return Conversion(self.anatomy.model, self.written(self.anatomy.model.state_dict()))

    def restore(self, sites: list[Site], file: Path) -> None:
        """Set the weights and biases of resident sites to those in a shard."""
        found = shards.read_file(file)
        for site in {site.key: site for site in sites}.values():
            self._install(site, self._conversion.read(site.key, found)[site.key])
            (bias,) = self._conversion.written({site.bias_key: torch.empty(0)})
            if bias in found:
                self._set_bias(site, found[bias].read())

    def rest(self) -> dict[str, Tensor]:
        """All tensors outside the blocks, by their keys in a checkpoint."""
        # Tied weights are one tensor under several keys, which safetensors refuses: keep one key.
        tied = getattr(self.anatomy.model, "all_tied_weights_keys", {})
        inside = f"{self.anatomy.prefix}."
        model = self.anatomy.model
        outside = {name: m for name, m in model.named_modules() if not f"{name}.".startswith(inside)}
        with self._onloaded(outside):
            state = model.state_dict()
            return self.written(
                {k: v for k, v in state.items() if not k.startswith(inside) and k not in tied}
            )

    def _write_back(self, module: nn.Module, hook: AlignDevicesHook) -> None:
        """Replace the offloaded copies of a module's changed weights."""
        for changed, leaf in self._changed:
            if changed is module:
                self._write_back_one(module, leaf, hook.weights_map)

    def _write_back_one(self, module: nn.Module, leaf: str, weights_map: Mapping[str, Tensor]) -> None:
        # accelerate keeps the weights in a dict, perhaps behind a view with a key prefix (`dataset`), or in a
        # loader that has a dict for those on the CPU (`state_dict`) and an index for those on disk.
        home: Any = getattr(weights_map, "dataset", weights_map)
        key = f"{getattr(weights_map, 'prefix', '')}{leaf}"
        weight = module.get_parameter(leaf).data.to("cpu")
        state = getattr(home, "state_dict", home)
        if key in state:
            state[key] = weight
            return
        # On disk: point the index to a new file, since the old one may be the user's checkpoint.
        file = self._spill_folder() / f"{key}.safetensors"
        save_file({key: weight}, file)
        dtype = str(weight.dtype).removeprefix("torch.")
        home.index[key] = {"safetensors_file": str(file), "weight_name": key, "dtype": dtype}

    def _spill_folder(self) -> Path:
        """A folder for changed weights of offloaded blocks; it is deleted together with the model."""
        if self._spill is None:
            self._spill = Path(tempfile.mkdtemp(prefix="llmprune-offload-"))
            weakref.finalize(self.anatomy.model, shutil.rmtree, self._spill, ignore_errors=True)
        return self._spill
