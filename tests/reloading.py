"""The check that a result loads, in this process instead of a fresh one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from llmprune.checkpoint import reload


def check_here(folder: Path, expected: Tensor | None, ids: Tensor, how: dict[str, Any]) -> dict[str, Any]:
    """What `reload.check` does, without the fresh process that takes seconds to start."""
    assert expected is not None, "a tiny model fits into memory"
    difference = float((reload.logits_of(str(folder), how, ids).float() - expected.float()).abs().max())
    if not difference <= 1e-4 * float(expected.abs().max()):
        raise RuntimeError(f"its logits differ by {difference:.3g}")
    line = reload.LINE.format(folder="{folder}", trust="")
    return {"line": line, "compared": "logits", "max_abs_logit_difference": difference}
