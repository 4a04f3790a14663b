"""Patch plain transformers so that it loads and saves layers of different sizes.

transformers takes seconds to import, so it is not imported here: its module is patched when it is imported.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODULE = "transformers.modeling_utils"


def install() -> None:
    """Patch transformers now if it is imported, otherwise when it is."""
    if MODULE in sys.modules:
        patch(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, _PatchOnImport())


def patch(module: ModuleType) -> None:
    """Make every model build its layers in the sizes that its config lists, and save what builds them."""
    model = module.PreTrainedModel
    post_init, save = model.post_init, model.save_pretrained
    if hasattr(post_init, "by_llmprune"):  # a reload of this module must not wrap it twice
        return

    def shape_and_post_init(self: PreTrainedModel) -> None:
        if _differs(self):
            from llmprune.model.per_layer import shape_layers

            # First, since transformers' own reads properties of the layers, which are replaced here.
            shape_layers(self)
        post_init(self)

    def save_with_code(self: PreTrainedModel, save_directory: str | Path, *rest: Any, **how: Any) -> None:
        save(self, save_directory, *rest, **how)
        if _differs(self) and Path(save_directory, "config.json").is_file():
            from llmprune.model.modelling_file import keep

            keep(self, Path(save_directory))

    shape_and_post_init.by_llmprune = True  # type: ignore[attr-defined]
    model.post_init, model.save_pretrained = shape_and_post_init, functools.wraps(save)(save_with_code)


def _differs(model: PreTrainedModel) -> bool:
    """Whether blocks differ in size."""
    mark = getattr(model.config, "llmprune", None)
    return isinstance(mark, dict) and mark.get("layout") == "per_layer"


class _PatchOnImport(MetaPathFinder):
    """Find one module as the other finders would, and patch it after it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)  # first, or the search below would ask this finder again
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader)
        return spec


class _PatchingLoader(Loader):
    def __init__(self, own: Loader) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        # The import system asks a loader for more than `Loader` has, such as the source of a traceback.
        return getattr(self._own, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._own.exec_module(module)
        patch(module)
