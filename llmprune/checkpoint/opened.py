"""An opened model: its source, its anatomy, and the device it computes on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from llmprune.checkpoint import placement, reader, source, versions
from llmprune.checkpoint.placement import Places, place_of
from llmprune.checkpoint.resources import Resources
from llmprune.checkpoint.source import Source
from llmprune.checkpoint.store import Store
from llmprune.errors import JobError
from llmprune.model.anatomy import Anatomy
from llmprune.report import ModelFacts

PROBE = 32  # tokens whose logits are compared with those of the reloaded model


@dataclass(frozen=True)
class Opened:
    """A model whose config and structure are known; its weights are read when they are first needed."""

    anatomy: Anatomy
    source: Source | None
    """None for a model in memory, which the caller holds."""

    resources: Resources
    trust_remote_code: bool = False
    places: Places | None = None
    """Where blocks wait between walks; None for the files of the checkpoint."""

    @property
    def name(self) -> str:
        """The folder, file or Hub id of the model; empty if unknown."""
        if self.source:
            return self.source.name
        return str(getattr(self.anatomy.model.config, "_name_or_path", ""))

    @cached_property
    def bytes(self) -> int:
        """Size of all weights, as stored."""
        if self.source:
            return self.source.size[0]
        return sum(p.numel() * p.element_size() for p in self.anatomy.model.parameters())

    @property
    def facts(self) -> ModelFacts:
        """The entry of the report for the model."""
        return {
            "source": self.name,
            "revision": self.source.revision if self.source else None,
            "family": self.anatomy.family,
            "parameters": self.anatomy.parameters,
            "bytes": self.bytes,
        }

    @cached_property
    def store(self) -> Store:
        """The model, ready to be walked."""
        if self.source is None:
            return Store(self.anatomy)
        where = self.resources
        opened = reader.open_streamed(self.source, self.anatomy, where.dtype, where.device)
        opened.hold(self.places or {})
        return opened

    def waits_on(self, device: str) -> int:
        """Bytes of the blocks that wait on a device."""
        if not self.source or not self.places:
            return 0
        inside, width = f"{self.anatomy.prefix}.", self.source.size[1].itemsize
        named = self.anatomy.model.named_parameters()
        here = [p for name, p in named if name.startswith(inside) and place_of(name, self.places) == device]
        return int(sum(p.numel() for p in here) * width)

    def whole(self) -> PreTrainedModel:
        """The whole model in memory, to generate text with.

        Raises:
            JobError: it does not fit into memory.
        """
        if self.source is None:
            return self.anatomy.model
        if not self.places and not self.fits_whole():
            raise JobError(
                "the model generates calibration text only where it fits into memory as a whole; use "
                "--calibration synthetic, which needs one block at a time, or give a text"
            )
        return self.loaded()

    def loaded(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """The whole checkpoint as plain transformers loads it, in the dtype of the computation or another."""
        assert self.source is not None
        if self.places:
            return placement.dispatched(self.source, dtype or self.resources.dtype, self.places)
        self.source.fetch()
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.source.folder,
            dtype=dtype or self.resources.dtype,
            trust_remote_code=self.trust_remote_code,
        )
        return model.to(self.resources.device).eval()

    def fits_whole(self, copies: float = 1, dtype: torch.dtype | None = None) -> bool:
        """Whether so many copies of the model fit into free memory, in the dtype of the computation."""
        limit = min(psutil.virtual_memory().available, self.resources.available)
        width = (dtype or self.resources.dtype).itemsize
        # One more: loading keeps a second copy for a while, and activations need room too.
        return bool((copies + 1) * self.anatomy.parameters * width < limit)

    def tokenizer(self, given: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
        """`given` if it is not None, otherwise the checkpoint's tokenizer."""
        if given is not None:
            return given
        trust = self.trust_remote_code
        if self.source is None:
            way_out = "pass the model's own as tokenizer="
            return source.tokenizer(self.name, trust_remote_code=trust, way_out=way_out)
        return source.tokenizer(self.source.folder, trust_remote_code=trust)

    @property
    def identity(self) -> dict[str, object] | None:
        """Cache key of text generated by this model; None for a model in memory, which may change."""
        if self.source is None:
            return None
        hardware = {"device": self.resources.name, "dtype": str(self.resources.dtype)}
        return hardware | {"weights": self.source.hashes, "versions": versions.installed()}

    def probe(self) -> Tensor:
        """Random token ids [1, T]; they depend on the vocabulary and the context length only."""
        length = min(PROBE, self.anatomy.context or PROBE)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, self.anatomy.vocabulary, (1, length), generator=generator)
