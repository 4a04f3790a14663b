"""Where the weights of a model live, and how one block at a time is brought in to be worked on.

accelerate's hooks keep offloaded weights on the CPU or on disk and bring them in for each forward of each
layer. Here a block is brought in once, pruned, run as often as needed, and let go.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.hooks import AlignDevicesHook, SequentialHook
from safetensors.torch import save_file
from torch import Tensor, nn

from llmprune.checkpoint import shards
from llmprune.checkpoint.shards import Stored
from llmprune.errors import JobError, RequestError
from llmprune.methods.base import Weights
from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site


class Store:
    """A model that the caller holds, on one device or dispatched by accelerate; results are written back."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self._changed: dict[tuple[nn.Module, str], tuple[Site, Tensor]] = {}  # by module and parameter
        self._dense_biases: dict[nn.Module, nn.Parameter | None] = {}
        self._spill: Path | None = None

    @contextmanager
    def resident(self, block: int) -> Iterator[None]:
        """Hold the weights of one block where they compute."""
        with self._onloaded(list(self.anatomy.blocks[block].modules())):
            yield

    @contextmanager
    def head(self) -> Iterator[None]:
        """Hold the weights of the layer that ends in logits where they compute."""
        with self._onloaded([self.anatomy.model.get_output_embeddings()]):
            yield

    @contextmanager
    def _onloaded(self, modules: list[nn.Module]) -> Iterator[None]:
        offloaded = [(m, hook) for m in modules for hook in _align_hooks(m) if hook.offload]
        if any(hook.place_submodules for _, hook in offloaded):
            raise RequestError(
                "model",
                "accelerate offloads whole blocks of it at once; dispatch it without preload_module_classes",
            )
        for module, hook in offloaded:
            hook.pre_forward(module)
            hook.offload = False
        try:
            yield
        finally:
            for module, hook in offloaded:
                self._write_back(module, hook)
                hook.offload = True
                hook.post_forward(module, None)
            self._changed.clear()
            self._release_biases()

    def _release_biases(self) -> None:
        """Forget the biases that were added; one in memory stays with its layer."""

    def weight(self, site: Site) -> Tensor:
        """The weight of a resident site as the checkpoint stores it, as a matrix [O, I].

        Raises:
            JobError: it holds NaN or infinity.
        """
        weight = site.matrix(self._stored(site))
        if not weight.isfinite().all():
            raise JobError(f"the weight of {site.name} holds NaN or infinity; the checkpoint is damaged")
        return weight

    def weights(self, site: Site) -> Weights:
        """The tensors of a resident site, which is all a method gets to see."""
        return site.read(self)

    def _stored(self, site: Site) -> Tensor:
        """The parameter that holds a site's weights, as the checkpoint stores it."""
        return site.weight

    def shift(self, site: Site, bias: Tensor) -> None:
        """Add to the bias of a resident site's layer, if any, rounded as it will be stored."""
        own = site.bias
        shifted = bias if own is None else bias + own.data
        self._set_bias(site, shifted.to(self._stored(site).dtype))

    def _set_bias(self, site: Site, bias: Tensor) -> None:
        layer = site.layer
        self._dense_biases.setdefault(layer, site.bias)
        layer.bias = nn.Parameter(bias.to(site.weight.device, site.weight.dtype), requires_grad=False)

    def put(self, site: Site, weight: Tensor) -> None:
        """Give a resident site its new weight [O, I], in the dtype of the checkpoint."""
        layer, now = site.layer, site.weight
        where = layer, site.leaf
        changed = self._changed.get(where)
        stored = site.placed(weight, lambda: self._stored(site) if changed is None else changed[1])
        trainable = layer.get_parameter(site.leaf).requires_grad
        setattr(layer, site.leaf, nn.Parameter(stored.to(now.device, now.dtype), trainable))
        self._changed[where] = site, stored

    def restore(self, site: Site, file: Path) -> None:
        """Give a resident site the weight that a file holds for it."""
        held = shards.read_file(file)
        self.put(site, site.matrix(held[self.key(site.key)].read()))
        bias = held.get(self.key(site.bias_key))
        if bias is not None:
            self._set_bias(site, bias.read())

    def key(self, name: str) -> str:
        """The checkpoint's key of a parameter of the blocks."""
        return name

    def tensors(self, block: int) -> dict[str, Tensor]:
        """The tensors of a resident block, by their keys in a checkpoint."""
        prefix = f"{self.anatomy.prefix}.{block}."
        return {prefix + name: tensor for name, tensor in self.anatomy.blocks[block].state_dict().items()}

    def rest(self) -> dict[str, Tensor]:
        """All tensors outside the blocks, by their keys in a checkpoint."""
        tied = getattr(self.anatomy.model, "all_tied_weights_keys", {})
        inside = f"{self.anatomy.prefix}."
        model = self.anatomy.model
        with self._onloaded([m for name, m in model.named_modules() if not f"{name}.".startswith(inside)]):
            state = model.state_dict()
            return {k: v for k, v in state.items() if not k.startswith(inside) and k not in tied}

    def _write_back(self, module: nn.Module, hook: AlignDevicesHook) -> None:
        """Replace the offloaded copies of a module's changed weights, on the CPU or in a new file."""
        for changed, leaf in self._changed:
            if changed is module:
                self._write_back_one(module, leaf, hook.weights_map)

    def _write_back_one(self, module: nn.Module, leaf: str, weights_map: Any) -> None:
        home = getattr(weights_map, "dataset", weights_map)
        key = f"{getattr(weights_map, 'prefix', '')}{leaf}"
        weight = module.get_parameter(leaf).data.to("cpu")
        state = getattr(home, "state_dict", home)
        if key in state:
            state[key] = weight
            return
        file = self._spill_folder() / f"{key}.safetensors"
        save_file({key: weight}, file)
        dtype = str(weight.dtype).removeprefix("torch.")
        home.index[key] = {"safetensors_file": str(file), "weight_name": key, "dtype": dtype}

    def _spill_folder(self) -> Path:
        """A folder for changed weights of blocks that live on disk; it lasts as long as the model."""
        if self._spill is None:
            self._spill = Path(tempfile.mkdtemp(prefix="llmprune-offload-"))
            weakref.finalize(self.anatomy.model, shutil.rmtree, self._spill, ignore_errors=True)
        return self._spill


class CheckpointStore(Store):
    """A model whose blocks stay in their checkpoint's files; results go to the caller, not back."""

    def __init__(self, anatomy: Anatomy, source: dict[str, Stored]) -> None:
        super().__init__(anatomy)
        self._source = source
        self._index = _offload_index(anatomy)

    def _entries(self, block: int) -> dict[str, Any]:
        prefix = f"{self.anatomy.prefix}.{block}."
        return {name: entry for name, entry in self._index.items() if name.startswith(prefix)}

    def key(self, name: str) -> str:
        """The checkpoint's key of a parameter of the blocks, or the one that a new bias gets."""
        beside = f"{name.removesuffix('.bias')}.weight"
        if name not in self._index and beside in self._index:
            return self.key(beside).removesuffix("weight") + "bias"
        key: str = self._index[name]["weight_name"] if name in self._index else name
        return key

    def _stored(self, site: Site) -> Tensor:
        return self._source[self.key(site.key)].read().to(site.weight.device)

    def _release_biases(self) -> None:
        for layer, bias in self._dense_biases.items():
            layer.register_parameter("bias", bias)
        self._dense_biases.clear()

    def tensors(self, block: int) -> dict[str, Tensor]:
        """The tensors of a resident block, by their keys in the checkpoint it came from."""
        changed: dict[str, Tensor] = {}
        for (layer, _), (site, weight) in self._changed.items():
            changed[self.key(site.key)] = weight
            if layer in self._dense_biases:
                bias = layer.get_parameter("bias").data
                changed[self.key(site.bias_key)] = bias.to(weight.dtype)
        keys = [entry["weight_name"] for entry in self._entries(block).values()]
        return {
            key: changed[key] if key in changed else self._source[key].read()
            for key in dict.fromkeys([*keys, *changed])
        }

    def rest(self) -> dict[str, Tensor]:
        """All tensors outside the blocks, by their keys in the checkpoint."""
        inside = {
            e["weight_name"]
            for block in range(len(self.anatomy.blocks))
            for e in self._entries(block).values()
        }
        return {key: stored.read() for key, stored in self._source.items() if key not in inside}

    def _write_back(self, module: nn.Module, hook: AlignDevicesHook) -> None:
        """The source is never written to."""


def _align_hooks(module: nn.Module) -> list[AlignDevicesHook]:
    """accelerate's hooks on a module that bring its weights in."""

    def flat(hook: Any) -> list[AlignDevicesHook]:
        if isinstance(hook, SequentialHook):
            return [found for part in hook.hooks for found in flat(part)]
        return [hook] if isinstance(hook, AlignDevicesHook) else []

    return flat(getattr(module, "_hf_hook", None))


def _offload_index(anatomy: Anatomy) -> dict[str, Any]:
    """accelerate's table of where each offloaded weight of the blocks is."""
    for module in anatomy.blocks.modules():
        for hook in _align_hooks(module):
            if hook.offload:
                index: dict[str, Any] = hook.weights_map.dataset.index
                return index
    raise AssertionError("the blocks of a streamed model are offloaded")
