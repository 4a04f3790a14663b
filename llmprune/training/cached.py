"""A teacher that need not fit into memory: the dense model is streamed once, and its predictions are kept.

Of every prediction, the likeliest tokens are kept, and all others count as one class.

Letters used in shapes: N windows, B of one batch, T tokens, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from llmprune.checkpoint.shards import save_atomically
from llmprune.checkpoint.store import Store
from llmprune.vocabulary.shared import Shared
from llmprune.walk.walk import Walk


class Cached:
    """The mean KL(dense || student) of windows that a file of `keep` knows.

    Args:
        file: read window by window.
        shared: the tokens that both models have, as `keep` got them.
    """

    states = False

    def __init__(self, file: Path, shared: Shared) -> None:
        self._shared = shared
        self._known = cast(Any, safe_open(file, framework="pt"))
        ids = self._known.get_tensor("ids")
        self._numbers = {window.numpy().tobytes(): number for number, window in enumerate(ids)}

    def __call__(self, ids: Tensor, student: Any) -> Tensor:
        """The mean loss in nats of what a student's forward pass returned for token ids [B, T]."""
        found = self._shared.of_pruned(student.logits)
        losses = [self._of(window, logits) for window, logits in zip(ids, found, strict=True)]
        return torch.stack(losses).mean()

    def _of(self, ids: Tensor, logits: Tensor) -> Tensor:
        number = self._numbers[ids.cpu().numpy().tobytes()]
        logs, tokens = (self._known.get_slice(name)[number] for name in ("logs", "tokens"))
        return divergence(logs.to(logits.device), tokens.to(logits.device).long(), logits.float())


def keep(store: Store, batches: list[Tensor], top: int, file: Path, shared: Shared) -> None:
    """Stream the dense model over all windows, unless that is done, and keep its likeliest predictions.

    Args:
        store: the dense model, one block resident at a time.
        batches: token ids of the student, each [B, T].
        top: K.
        file: to write: token ids [N, T], float32 log-probabilities and int32 tokens [N, T, K], which are
            numbers of shared tokens.
        shared: the tokens that both models have.

    Raises:
        JobError: the disk is full, or the folder cannot be written.
    """
    if file.is_file():
        return
    read = [shared.dense_ids(batch) for batch in batches]
    walk = Walk(store, read, read[0][:1])
    ends: list[Tensor] = []
    for stage in walk.stages("asking the dense model"):
        ends = stage.outputs = stage.run()
    logs, tokens = [], []
    with store.head():
        for states in ends:
            for one in states:
                found = shared.of_dense(walk.logits(one[None])[0]).float().log_softmax(-1)
                largest = found.topk(min(top, found.shape[-1]), dim=-1)
                logs.append(largest.values.cpu())
                tokens.append(largest.indices.int().cpu())
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {"ids": torch.cat(batches), "logs": torch.stack(logs), "tokens": torch.stack(tokens)}
    save_atomically(kept, file)


def divergence(logs: Tensor, tokens: Tensor, logits: Tensor) -> Tensor:
    """The mean KL(dense || student) in nats over the likeliest tokens, and all others as one class.

    Args:
        logs: the dense model's log-probabilities [T, K].
        tokens: of these [T, K].
        logits: the student's [T, V].
    """
    whole = logits.logsumexp(-1)
    known = (logs.exp() * (logs - logits.gather(-1, tokens) + whole[:, None])).sum(-1)
    if logs.shape[-1] == logits.shape[-1]:
        return known.mean()
    others = logits.scatter(-1, tokens, -torch.inf).logsumexp(-1) - whole
    rest = (1 - logs.exp().sum(-1)).clamp_min(torch.finfo(logs.dtype).tiny)
    return (known + rest * (rest.log() - others)).mean()
