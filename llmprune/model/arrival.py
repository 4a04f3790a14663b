"""Teach plain transformers to load layers of different sizes, as soon as both libraries are imported.

transformers takes seconds to import, so it is not imported here: its module is amended when it comes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MODULE = "transformers.modeling_utils"


def announce() -> None:
    """Amend transformers now if it is here, or else when it arrives."""
    if MODULE in sys.modules:
        amend(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, _Watch())


def amend(module: ModuleType) -> None:
    """Let every model that transformers builds shape the layers that a config of ours describes."""
    model = module.PreTrainedModel
    post_init = model.post_init
    if hasattr(post_init, "by_llmprune"):
        return

    def shape_and_post_init(self: Any) -> None:
        mark = getattr(self.config, "llmprune", None)
        if isinstance(mark, dict) and mark.get("layout") == "per_layer":
            from llmprune.model.per_layer import shape_layers

            shape_layers(self)
        post_init(self)

    shape_and_post_init.by_llmprune = True  # type: ignore[attr-defined]
    model.post_init = shape_and_post_init


class _Watch(MetaPathFinder):
    """Finds one module as everybody else would, and amends it after it has been run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Amending(spec.loader)
        return spec


class _Amending(Loader):
    def __init__(self, own: Loader) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._own.exec_module(module)
        amend(module)
