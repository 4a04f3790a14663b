"""What becomes of heads for multi-token prediction: they stay, lose experts like the blocks, or go.

Letters used in shapes: B sequences of one batch, T tokens, D hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

from llmprune.checkpoint.shards import DTYPES
from llmprune.checkpoint.streamed import CheckpointStore
from llmprune.model import mtp
from llmprune.model.anatomy import Anatomy
from llmprune.model.mtp import Head
from llmprune.model.shapes import Shapes, StoredBlock
from llmprune.report import SiteRecord
from llmprune.run.job import Job
from llmprune.run.work import Work
from llmprune.walk.expert_loop import looped
from llmprune.walk.observation import Observed
from llmprune.walk.pausing import device_of
from llmprune.walk.stage import Call, Stage
from llmprune.walk.walk import Walk, dry_run

GO = "the heads for multi-token prediction were left out, since {why}; engines draft without them"


class MtpHeads:
    """The heads of a checkpoint; a model in memory has none.

    Args:
        todo: the job.
        shapes: of the pruned model.
    """

    def __init__(self, todo: Job, shapes: Shapes) -> None:
        self._store, self.shapes = todo.model.store, shapes
        self._source = todo.model.source.tensors if todo.model.source else {}
        self._keys = mtp.keys_of(todo.model.anatomy, self._source)
        self._found: list[Head] = []
        self._keeps: list[dict[str, Tensor]] = []
        self.records: list[SiteRecord] = []
        """What became of the experts of each head."""
        self.removed = 0
        """Numbers that the checkpoint stores for heads and the result does not."""
        self.gone = ""
        """Why they go; empty if they stay."""
        if self._keys:
            self._settle(todo)

    def _settle(self, todo: Job) -> None:
        """Find out what becomes of them."""
        packed = todo.model.source is not None and todo.model.source.packed
        shrink = self.shapes.mtp == "shrink" and any(".experts." in key for key in self._keys)
        if self.shapes.mtp == "go":
            self.gone = "they are as large as the dense blocks"
        elif packed and not self.shapes.copies:
            self.gone = "they are packed and the blocks no longer are"
        elif shrink and todo.scores:
            self.gone = "scores hold nothing of them"
        elif shrink:
            self._found = self._understood()
            self.gone = "" if self._found else "llmprune cannot tell how they compute"

    def _understood(self) -> list[Head]:
        """The heads that can be computed: all or none."""
        store = self._store
        assert isinstance(store, CheckpointStore)
        shapes = {key: self._source[key].shape for key in self._keys}
        blocks = [store.shapes(block) for block, _ in enumerate(store.anatomy.blocks)]
        found = mtp.heads(store.anatomy.hidden_size, shapes, blocks)
        around = [self._source[key] for head in found for key in (head.projection, *head.norms)]
        known = all(stored.type in DTYPES for stored in around)
        return found if known and all(_norm(store.anatomy, head.twin) for head in found) else []

    @property
    def lose_experts(self) -> bool:
        """Whether `prune` has work to do."""
        return bool(self._found)

    @property
    def warnings(self) -> list[str]:
        """A sentence about heads that go."""
        return [GO.format(why=self.gone)] if self.gone else []

    def prune(self, walk: Walk, work: Work) -> None:
        """Choose the experts of each head that stay, by what enters it behind the blocks.

        Args:
            walk: through the blocks to the end; pruned ones, unless the propagation is `dense`.
            work: what pruned them.
        """
        states, ids = walk.states(), walk.batches
        for head in self._found:
            # What a head reads of a token is the state before it.
            ids, states = [batch[:, 1:] for batch in ids], [state[:, :-1] for state in states]
            hidden, calls = self._entering(head, ids, states)
            states = self._pruned(head, Stage(self._store.anatomy, head.twin, hidden, calls), work)

    def _pruned(self, head: Head, stage: Stage, work: Work) -> list[Tensor]:
        """Prune one head in the place of its twin; return what it hands on [B, T, D]."""
        store = self._store
        assert isinstance(store, CheckpointStore)
        alone = dataclasses.replace(work, draft=None, observed=Observed(), solved=None, keeps={})
        with (
            store.standing_in(head.as_twin(self._source)),
            store.resident(head.twin),
            looped(stage.block),
        ):
            record = alone.pruned(stage)
            states = stage.passed_on() if head is not self._found[-1] else []
        number = len(store.anatomy.blocks) + len(self._keeps)
        for site in record.sites:
            name = head.stem + site.name.removeprefix(f"{store.anatomy.prefix}.{head.twin}.")
            self.records.append(site.model_copy(update={"name": name, "block": number}))
        self._keeps.append(alone.keeps)
        return [self._normed(head, head.norms[2], state) for state in states]

    def _entering(
        self, head: Head, ids: list[Tensor], states: list[Tensor]
    ) -> tuple[list[Tensor], list[Call]]:
        """What the block of a head gets: hidden states [B, T, D], and its other arguments.

        Args:
            head: the head.
            ids: of the tokens that it reads, each [B, T].
            states: before each of them [B, T, D].
        """
        if not any(batch.numel() for batch in ids):
            return [], []
        with self._store.resident(0):  # the dry run calls the first block once
            # Positions begin at zero again, which rotary embeddings do not tell from one.
            dry = dry_run(self._store.anatomy, ids)
        projection = self._source[head.projection].read()
        for batch, (token, state) in enumerate(zip(dry.hidden, states, strict=True)):
            norms = zip(head.norms, (token, state), strict=False)
            joined = torch.cat([self._normed(head, key, x) for key, x in norms], -1)
            dry.hidden[batch] = linear(joined, projection.to(joined)).to(token.device)
        return dry.hidden, dry.calls[head.twin]

    def _normed(self, head: Head, key: str, x: Tensor) -> Tensor:
        """Hidden states [B, T, D] behind a norm of a head, which computes as those of its twin do."""
        norm = _norm(self._store.anatomy, head.twin)
        assert norm is not None, "a head without is not understood"
        weight = self._source[key].read().to(device_of(self._store.anatomy.trunk), x.dtype)
        ((name, _),) = norm.named_parameters()
        normed: Tensor = functional_call(norm, {name: weight}, (x.to(weight.device),))
        return normed

    def written(self, rest: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is written of all tensors outside the blocks, given by their keys in the checkpoint."""
        if not self.gone and not self._found:
            return rest
        others = {key: tensor for key, tensor in rest.items() if key not in self._keys}
        behind = {key: rest[key] for key in self._keys}
        kept = {} if self.gone else behind
        for head, keeps in zip(self._found, self._keeps, strict=True):
            kept = self._cut(head, keeps, kept)
        self.removed = _numbers(behind) - _numbers(kept)
        return others | kept

    def _cut(self, head: Head, keeps: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all heads, one of them cut."""
        stored = StoredBlock(head.twin, head.as_twin(tensors), self._store.owner)
        cut = self.shapes.cut_stored(stored, keeps)
        others = {key: tensor for key, tensor in tensors.items() if not head.owns(key)}
        return others | {head.as_itself(key): tensor for key, tensor in cut.items()}


def _norm(anatomy: Anatomy, block: int) -> nn.Module | None:
    """A norm of the hidden states in a block, of one weight [D]."""
    shape = [(anatomy.hidden_size,)]
    found = anatomy.blocks[block].children()
    return next((module for module in found if [p.shape for p in module.parameters()] == shape), None)


def _numbers(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
