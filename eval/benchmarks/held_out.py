"""Windows of text that neither calibrates nor is evaluated: what candidates are chosen by, and reported on.

Of `../shared/data/calib`, C4's last 40 documents and Wikipedia's last 80 only report; the 40 and 80 before
them choose; the rest calibrates and teaches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from llmprune_eval import logits
from torch import Tensor

from llmprune.tensors.agreement import Agreement, agreement
from llmprune.text import sources
from llmprune.text.tokenizing import tokenize

DOCUMENTS = {"c4": 40, "wikipedia": 80}


def windows(shared: Path, name: str, tokenizer: Any, *, choosing: bool, count: int, length: int) -> Tensor:
    """The first windows [N, L] of a held-out text."""
    part = documents(shared, name, "choosing" if choosing else "reporting")
    return _windows(part, tokenizer, length)[:count]


def teaching(shared: Path, name: str, tokenizer: Any, length: int) -> Tensor:
    """The windows [N, L] of a text that neither choose nor report."""
    return _windows(documents(shared, name, "teaching"), tokenizer, length)


def documents(shared: Path, name: str, part: str) -> list[str]:
    """The documents of a text that are `teaching`, `choosing` or `reporting`."""
    file, number = shared / "data/calib" / name / "train.parquet", DOCUMENTS[name]
    every = list(sources.for_evaluation(str(file)).documents("evaluation"))
    ends = {
        "teaching": (None, -2 * number),
        "choosing": (-2 * number, -number),
        "reporting": (-number, None),
    }
    return every[slice(*ends[part])]


def _windows(texts: list[str], tokenizer: Any, length: int) -> Tensor:
    ids = tokenize("\n\n".join(texts), tokenizer)
    return ids[: len(ids) // length * length].reshape(-1, length)


@torch.no_grad()
def compared(dense: Any, pruned: Any, tokens: Tensor) -> list[Agreement]:
    """KL(dense || pruned) and top-1 agreement of every window [L]."""
    found = []
    for ids in tokens:
        total = Agreement()
        for (rows, before), (_, after) in zip(
            logits.pieces(dense, ids), logits.pieces(pruned, ids), strict=True
        ):
            last = len(ids) - 1 - rows.start  # nothing follows the last token
            total += agreement(before[:last], after[:last])
        found.append(total)
    return found
