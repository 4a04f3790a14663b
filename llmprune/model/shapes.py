"""What pruning changes of a model's sizes, and how they are written: nothing, where masks leave zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch import Tensor

from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site

Layout = Literal["uniform", "per_layer", "padded"]


class Lost(TypedDict, total=False):
    """What the report counts of one pruned site."""

    dropped: int
    """Parameters that went."""
    zeros: int
    """Zeros that are stored in their place."""
    shape_after: list[int]
    units: list[int]
    """How many there were and are, where whole units go."""


class Shapes:
    """The sizes of a pruned model, as they are written. Override what changes.

    Args:
        anatomy: of the dense model.
    """

    layout: Layout | None = None
    """How blocks of different sizes are written; None where sizes stay."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy

    def lost(self, site: Site, weight: Tensor, keep: Tensor) -> Lost:
        """Count what a site lost, given its new weight [O, I] and what was kept of it, bool [O, I] or [I]."""
        return {
            "dropped": keep.numel() - int(keep.sum()),
            "zeros": int((weight == 0).sum()),
            "shape_after": list(weight.shape),
        }

    def written(
        self, block: int, keeps: Mapping[str, Tensor], tensors: dict[str, Tensor], key: Callable[[str], str]
    ) -> dict[str, Tensor]:
        """What is written of one block.

        Args:
            block: its index in the dense model.
            keeps: what was kept of every site, by its name.
            tensors: of the block with its dense sizes, by their keys in the checkpoint.
            key: the checkpoint's key of a parameter.
        """
        return tensors

    def rest(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is written of all tensors outside the blocks, given by their keys in the checkpoint."""
        return tensors

    def files(self, folder: Path) -> dict[str, str | None]:
        """The files beside the weights that change: by name, their new text, or None where one is left out.

        Args:
            folder: of the dense model.
        """
        return {}

    def reloaded(self, ids: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The probe [1, T] and its logits [1, T, V], as they are once the pruned model is loaded."""
        return ids, logits

    def config(self, settings: dict[str, Any]) -> dict[str, Any]:
        """config.json of the pruned model, given that of the dense one."""
        return settings

    def mark(self) -> dict[str, Any]:
        """What the config's `llmprune` key says of sizes: what an earlier pruning left, which masks keep."""
        kept = {key: earlier(self.anatomy, key) for key in ("layout", "biases")}
        return kept if kept["layout"] else {}

    def apply(self, keeps: Mapping[str, Tensor], mark: dict[str, Any]) -> None:
        """Give a model in memory the sizes that its files would have.

        Args:
            keeps: what was kept of every site, by its name.
            mark: what the config says of the pruning.
        """


def earlier(anatomy: Anatomy, key: str) -> Any:
    """What an earlier pruning has written into the config of a `per_layer` model; empty of any other."""
    mark = getattr(anatomy.model.config, "llmprune", None) or {}
    return mark.get(key, ()) if mark.get("layout") == "per_layer" else ()
