"""The sizes of a model without some decoder blocks, or without one part of some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from llmprune.model import mtp, per_layer
from llmprune.model.anatomy import Anatomy
from llmprune.model.block_site import BlockSite
from llmprune.model.decoder_config import stored_in
from llmprune.model.depth import dense_indices, fewer, with_fewer_blocks
from llmprune.model.shapes import Removed, Settings, Shapes, StoredBlock, from_earlier_pruning
from llmprune.model.site import Site


class _Fewer(Shapes):
    """Of some blocks the site goes.

    Args:
        anatomy: of the dense model.
        gone: these blocks.
        refits: whether a repair changes weights of the others.
    """

    def __init__(self, anatomy: Anatomy, gone: set[int], *, refits: bool = False) -> None:
        super().__init__(anatomy)
        self.gone, self._refits = gone, refits

    @property
    def copies(self) -> bool:
        """No weight that stays changes, unless a repair refits some."""
        return not self._refits

    @property
    def mtp(self) -> Literal["stay"]:
        """Their sizes stay."""
        return "stay"

    def count_removed(self, site: Site, weight: Tensor, keep: Tensor) -> Removed:
        """All parameters of the site, or none."""
        assert isinstance(site, BlockSite)
        return site.removed(gone=site.block in self.gone)


class FewerBlocks(_Fewer):
    """Blocks that go are not written, and the later ones are renumbered.

    Args:
        anatomy: of the dense model.
        gone: the blocks that go.
        refits: whether a repair changes weights of the others.
    """

    def __init__(self, anatomy: Anatomy, gone: set[int], *, refits: bool = False) -> None:
        super().__init__(anatomy, gone, refits=refits)
        self.kept = [block for block in range(len(anatomy.blocks)) if block not in gone]

    def cut_stored(self, stored: StoredBlock, keeps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A block that stays, under its new number."""
        if stored.number in self.gone:
            return {}
        # The checkpoint's prefix may differ from the model's (`transformer.h` without its first word).
        before, after = f".{stored.number}.", f".{self.kept.index(stored.number)}."
        return {key.replace(before, after, 1): tensor for key, tensor in stored.tensors.items()}

    def rest(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Heads for multi-token prediction follow the last block that stays."""
        return mtp.renumbered(self.anatomy, tensors, len(self.gone))

    def config(self, settings: Settings) -> Settings:
        """config.json with everything that counts blocks adjusted."""
        return with_fewer_blocks(settings, self.anatomy, self.kept)

    def mark(self) -> Settings:
        """Each block's index in the dense model, beside what an earlier pruning left."""
        indices = dense_indices(self.anatomy)
        return super().mark() | {"blocks": [indices[block] for block in self.kept]}

    def apply(self, keeps: Mapping[str, Tensor], mark: Settings) -> None:
        """Delete the blocks of a model in memory, and renumber the others for their caches."""
        anatomy = self.anatomy
        config = stored_in(anatomy.model)
        for name, value in fewer(config.to_dict(), anatomy, self.kept).items():
            if getattr(config, name, None) != value:
                setattr(config, name, value)
        anatomy.model.config.llmprune = mark
        for block in sorted(self.gone, reverse=True):
            del anatomy.blocks[block]
        for number, renumbered in enumerate(anatomy.blocks):
            for module in renumbered.modules():
                if hasattr(module, "layer_idx"):
                    setattr(module, "layer_idx", number)  # noqa: B010 - typed as a tensor or a module


class FewerParts(_Fewer):
    """Blocks stay, and the config names the part that some skip.

    Args:
        anatomy: of the dense model.
        gone: the blocks whose part goes.
        modules: the part, by the names of its modules in a block.
    """

    layout = "per_layer"

    def __init__(self, anatomy: Anatomy, gone: set[int], modules: tuple[str, ...]) -> None:
        super().__init__(anatomy, gone)
        self.modules = modules

    def cut_stored(self, stored: StoredBlock, keeps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A block without the tensors of its part."""
        gone = self.modules if stored.number in self.gone else ()
        parts = [f".{stored.number}.{name}." for name in gone]
        owned = ((key, tensor, stored.owner(key)) for key, tensor in stored.tensors.items())
        return {key: tensor for key, tensor, name in owned if not any(part in name for part in parts)}

    def config(self, settings: Settings) -> Settings:
        """config.json with what each layer skips."""
        earlier = settings.get("per_layer_config")
        layers: dict[str, Settings] = {}
        if isinstance(earlier, dict):
            layers = {str(block): dict(own) for block, own in earlier.items()}
        for block in sorted(self.gone):
            skipped = {*self.anatomy.skipped(block), *self.modules}
            layers[str(block)] = layers.get(str(block), {}) | {"skip": sorted(skipped)}
        return settings | {"per_layer_config": layers}

    def mark(self) -> Settings:
        """The layout, beside the biases of an earlier pruning."""
        return {"layout": self.layout, "biases": list(from_earlier_pruning(self.anatomy, "biases"))}

    def apply(self, keeps: Mapping[str, Tensor], mark: Settings) -> None:
        """Remove the parts of a model in memory."""
        model = self.anatomy.model
        model.config.per_layer_config = self.config(model.config.to_dict())["per_layer_config"]
        model.config.llmprune = mark
        for block in self.gone:
            per_layer.skip(self.anatomy.blocks[block], self.modules)
