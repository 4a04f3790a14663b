"""Rows of the vocabulary: the same tokens go from embedding, head and per-layer embeddings.

Letters used in shapes: V rows of the vocabulary, K rows that stay, D features of a row, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from llmprune.errors import RequestError
from llmprune.methods.base import Weights
from llmprune.model.anatomy import Anatomy
from llmprune.model.decoder_config import decoder_config
from llmprune.model.shapes import Removed, Settings, Shapes
from llmprune.model.site import Site, WeightStore
from llmprune.model.sites.base import Sites, SizeRequest
from llmprune.model.twins import following
from llmprune.model.widths import Allowed, Budget
from llmprune.patterns.vocabulary import Vocabulary
from llmprune.vocabulary import bpe, settings
from llmprune.vocabulary.choice import Kept


@dataclass(frozen=True, eq=False)
class RowSite(Site):
    """One table. It lies outside the blocks, and is recorded along with the first of them."""

    rows: int = 0
    width: int = 0
    """Parameters of one row, its bias included."""

    @property
    def kind(self) -> str:
        """The name of the table."""
        return self.name

    @property
    def weights(self) -> int:
        """All parameters of the table."""
        return self.rows * self.width

    def read(self, store: WeightStore) -> Weights:
        """Nothing to see: no row is chosen by its weights."""
        return Weights(torch.ones(1, 1), self.index)

    def write(self, store: WeightStore, weight: Tensor, bias: Tensor | None) -> None:
        """Leave the table whole while the model is walked; it is cut when it is written."""


class FewerRows(Shapes):
    """The sizes of a model with fewer tokens.

    Args:
        anatomy: of the dense model.
        kept: the rows that stay.
    """

    def __init__(self, anatomy: Anatomy, kept: Kept) -> None:
        super().__init__(anatomy)
        self.kept = kept
        self._tables = dict(tables(anatomy))

    @property
    def copies(self) -> bool:
        """The blocks stay as they are."""
        return True

    @property
    def mtp(self) -> Literal["go"]:
        """They have embeddings of their own."""
        return "go"

    def _staying(self, rows: int) -> list[int]:
        """The rows that stay of a table, which may hold the first rows of the vocabulary only."""
        return [row for row in self.kept.rows if row < rows]

    def count_removed(self, site: Site, weight: Tensor, keep: Tensor) -> Removed:
        """The parameters of all rows that go."""
        assert isinstance(site, RowSite)
        stay = len(self._staying(site.rows))
        dropped = (site.rows - stay) * site.width
        return {"dropped": dropped, "zeros": 0, "units": [site.rows, stay], "shape_after": [stay, site.width]}

    def rest(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every table with the rows that stay, and the other tensors as they are."""
        return {key: self._cut(key, tensor) for key, tensor in tensors.items()}

    def _cut(self, key: str, tensor: Tensor) -> Tensor:
        rows = self._rows_of(key, tensor)
        return tensor if rows is None else tensor[torch.tensor(self._staying(rows))]

    def _rows_of(self, key: str, tensor: Tensor) -> int | None:
        """The rows of a tensor of a table, by its key in the checkpoint; None of any other."""
        for name in self.anatomy.model.state_dict():
            # The checkpoint's prefix may differ from the model's (`transformer.wte` without its first word).
            if f".{name}".endswith(f".{key}") or f".{key}".endswith(f".{name}"):
                return self._tables.get(name.rpartition(".")[0])
        # Some heads have another name in their checkpoints (`embed_out` for `lm_head`).
        return next((rows for rows in self._tables.values() if tensor.shape[:1] == (rows,)), None)

    def config(self, settings_: Settings) -> Settings:
        """config.json with the new ids and sizes."""
        sizes = {settings.SIZE: len(self.kept.rows)}
        config = decoder_config(self.anatomy.model)
        if hasattr(config, settings.PER_LAYER):
            sizes[settings.PER_LAYER] = len(self._staying(getattr(config, settings.PER_LAYER)))
        return settings.renumbered(settings_, self.kept.new, sizes)

    def files(self, folder: Path) -> dict[str, str | None]:
        """The tokenizer of the tokens that stay, and the new ids wherever a file names one."""
        found: dict[str, str | None] = dict.fromkeys(settings.REPLACED)
        found[bpe.FILE] = _json(bpe.cut(bpe.completed(bpe.read(folder), self.kept.unlisted), self.kept.new))
        for name in settings.FILES:
            if (folder / name).is_file():
                found[name] = _json(settings.renumbered(settings.read(folder / name), self.kept.new))
        return found

    def reloaded(self, ids: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The new ids [1, T], and the logits [1, T, K] of the tokens that stay."""
        rows = torch.tensor(self.kept.rows)
        new = torch.searchsorted(rows, ids)
        return new, None if logits is None else logits[..., rows.to(logits.device)]


def _json(data: Mapping[str, object]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def tables(anatomy: Anatomy) -> Iterator[tuple[str, int]]:
    """The path of every table of the vocabulary, tied ones included, with its rows."""
    model = anatomy.model
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    config = decoder_config(model)
    per_layer = getattr(config, settings.PER_LAYER, None)
    for path, module in model.named_modules():
        if f"{path}.".startswith(f"{anatomy.prefix}."):
            continue
        if any(module is end for end in ends):
            yield path, anatomy.vocabulary
        elif isinstance(module, nn.Embedding) and per_layer and module.num_embeddings == per_layer:
            yield path, per_layer


@dataclass(frozen=True)
class Rows(Sites):
    """One site for each table; a tied head goes with the embedding."""

    pattern: Vocabulary

    changes_sizes: ClassVar = True
    shares: ClassVar = "rows"

    def find(self, anatomy: Anatomy) -> Iterator[RowSite]:
        """The tables, in the order of the model's modules."""
        tied = getattr(anatomy.model, "all_tied_weights_keys", {})
        untied = [(path, rows) for path, rows in tables(anatomy) if f"{path}.weight" not in tied]
        for index, (path, rows) in enumerate(untied):
            size = sum(p.numel() for p in anatomy.module(path).parameters())
            yield RowSite(path, index, 0, path, anatomy.module, 1, 1, rows=rows, width=size // rows)

    def allowed(self, anatomy: Anatomy, asked: SizeRequest) -> Allowed:
        """Refuse a model whose vocabulary is in more than its tables; the shares themselves are free.

        Raises:
            RequestError: it names what else follows the number of tokens.
        """
        rows = {f"{path}.{leaf}": rows for path, rows in tables(anatomy) for leaf in ("weight", "bias")}
        state = anatomy.model.state_dict()
        known = {name for name, count in rows.items() if name in state and len(state[name]) == count}
        config, half = decoder_config(anatomy.model), anatomy.vocabulary // 2
        fields = [name for name in (settings.SIZE, settings.PER_LAYER) if hasattr(config, name)]
        follows = following(anatomy.model, dict.fromkeys(fields, half))
        odd = set() if follows is None else follows ^ known
        if odd or not anatomy.sites:
            why = f"{min(odd)} does not follow it as its tables do" if odd else "it has no table of its own"
            raise RequestError(
                "pattern",
                f"the vocabulary of a {anatomy.family!r} model cannot be cut ({why}); prune units or blocks",
            )
        return {}

    def sparsity(self, anatomy: Anatomy, asked: SizeRequest) -> float:
        """The share of rows that go."""
        return 1 - self.pattern.rows / anatomy.vocabulary

    def shapes(self, anatomy: Anatomy, asked: SizeRequest, budget: Budget) -> FewerRows:
        """With the tokens that were chosen."""
        assert asked.kept is not None, "tokens are chosen before the walk"
        return FewerRows(anatomy, asked.kept)
