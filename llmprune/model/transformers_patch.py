"""Patch plain transformers so that it loads layers of different sizes.

transformers takes seconds to import, so it is not imported here: its module is patched when it is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
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
    """Make every model build its layers in the sizes that the config of a pruned model lists."""
    model = module.PreTrainedModel
    post_init = model.post_init
    if hasattr(post_init, "by_llmprune"):  # a reload of this module must not wrap it twice
        return

    def shape_and_post_init(self: PreTrainedModel) -> None:
        mark = getattr(self.config, "llmprune", None)
        if isinstance(mark, dict) and mark.get("layout") == "per_layer":
            from llmprune.model.per_layer import shape_layers

            # First, since transformers' own reads properties of the layers, which are replaced here.
            shape_layers(self)
        post_init(self)

    shape_and_post_init.by_llmprune = True  # type: ignore[attr-defined]
    model.post_init = shape_and_post_init


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
