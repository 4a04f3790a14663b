"""The logits of a text, a few tokens at a time: those of a whole window would not fit into small memories.

Letters used in shapes: L tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llmprune_eval.engine import Engine

ROWS = 256  # tokens whose logits are there at a time: 150,000 words of vocabulary take 150 MB then


@torch.no_grad()
def pieces(model: Any, ids: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The logits of a window [L], as slices of it with their float32 logits [up to ROWS, V].

    In transformers the trunk runs once on all tokens; then the model is called for each piece with a trunk
    that hands out what it had computed, so whatever the family does to its logits is done.
    """
    if isinstance(model, Engine):
        yield from model.pieces(ids)
        return
    ids = ids.to(next(model.parameters()).device)[None]
    trunk = model.get_decoder()
    whole = trunk(ids, use_cache=False)
    hidden: Tensor = whole.last_hidden_state  # [1, L, D]
    own = vars(trunk).get("forward")
    for start in range(0, ids.shape[1], ROWS):
        rows = slice(start, min(start + ROWS, ids.shape[1]))
        part = type(whole)(**{**whole, "last_hidden_state": hidden[:, rows]})
        trunk.forward = lambda *_, part=part, **__: part
        try:
            logits: Tensor = model(ids[:, rows], use_cache=False).logits[0]
        finally:
            if own is None:
                del trunk.forward
            else:
                trunk.forward = own  # a hook of accelerate's
        yield rows, logits.float()


def rows_of(model: Any) -> int:
    """Rows of a model's vocabulary."""
    return model.vocabulary if isinstance(model, Engine) else len(model.get_input_embeddings().weight)


def dtype_of(model: Any) -> str:
    """What a model's weights are stored in, and who computes with them where that is not torch."""
    if isinstance(model, Engine):
        return f"{model.dtype} in llama.cpp"
    return str(next(model.parameters()).dtype).removeprefix("torch.")
