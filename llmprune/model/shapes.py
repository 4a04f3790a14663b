"""How pruning changes the sizes of a model, and how they are stored. Masks leave all sizes as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch import Tensor

from llmprune.model.anatomy import Anatomy
from llmprune.model.site import Site

Layout = Literal["uniform", "per_layer", "padded"]
Settings = dict[str, object]  # config.json, or a mapping inside it


class Removed(TypedDict, total=False):
    """What was removed at one site, for the report."""

    dropped: int
    """Parameters that were removed or set to zero."""
    zeros: int
    """Zeros that the file stores in their place."""
    shape_after: list[int]
    units: list[int]
    """Units before and after; only where whole units are removed."""


@dataclass(frozen=True)
class StoredBlock:
    """One block as the dense checkpoint has it."""

    number: int
    tensors: dict[str, Tensor]
    """By their keys in the checkpoint."""

    owner: Callable[[str], str]
    """Returns the parameter that a key belongs to."""


class Shapes:
    """The sizes of a pruned model, as they are stored. Override what changes.

    Args:
        anatomy: of the dense model.
    """

    layout: Layout | None = None
    """How blocks of different sizes are stored; None if no size changes."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy

    def count_removed(self, site: Site, weight: Tensor, keep: Tensor) -> Removed:
        """Count what was removed at a site.

        Args:
            site: the site.
            weight: its new weight [O, I].
            keep: what stays, bool [O, I], or [I] where whole inputs are removed.
        """
        return {
            "dropped": keep.numel() - int(keep.sum()),
            "zeros": int((weight == 0).sum()),
            "shape_after": list(weight.shape),
        }

    def cut_tensors(
        self, block: int, keeps: Mapping[str, Tensor], tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The tensors to write for one block.

        Args:
            block: its index in the dense model.
            keeps: what stays at every site, by the site's name.
            tensors: of the block in its dense sizes, by their names in the model.
        """
        return tensors

    @property
    def mtp(self) -> Literal["stay", "shrink", "go"]:
        """What becomes of heads for multi-token prediction: they stay as they are, lose experts, or go."""
        return "stay" if self.layout is None else "go"

    @property
    def copies(self) -> bool:
        """Whether what stays is copied as the checkpoint has it, packed or not."""
        return False

    def cut_stored(self, stored: StoredBlock, keeps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors to write for one block, by their keys in the checkpoint.

        Args:
            stored: the block, cut by `cut_tensors` unless it is copied.
            keeps: what stays at every site, by the site's name.
        """
        return stored.tensors

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

    def config(self, settings: Settings) -> Settings:
        """config.json of the pruned model, given that of the dense one."""
        return settings

    def mark(self) -> Settings:
        """The sizes part of the config's `llmprune` key."""
        # Masks keep the sizes of an earlier pruning, so the entries for them must stay.
        kept = {key: from_earlier_pruning(self.anatomy, key) for key in ("layout", "biases")}
        return kept if kept["layout"] else {}

    def apply(self, keeps: Mapping[str, Tensor], mark: Settings) -> None:
        """Give a model in memory the sizes that its files would have.

        Args:
            keeps: what stays at every site, by the site's name.
            mark: the value of the config's `llmprune` key.
        """


def from_earlier_pruning(anatomy: Anatomy, key: str) -> Any:
    """An entry of the config's `llmprune` key if an earlier pruning stored `per_layer` sizes; else ()."""
    mark = getattr(anatomy.model.config, "llmprune", None) or {}
    return mark.get(key, ()) if mark.get("layout") == "per_layer" else ()
