"""Checkpoints of a training: its weights as they are and at their best, beside Trainer's own files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer import OPTIMIZER_NAME

from llmprune import ranks
from llmprune.training import sharded

LAST, BEST = "last.safetensors", "best.safetensors"
COMPLETE = "complete"  # a file that is written last


def complete(folder: Path, name: str, weights: dict[str, Tensor], best: dict[str, Tensor]) -> None:
    """Add the weights to a checkpoint, mark it as whole, and delete those before it.

    Args:
        folder: of the training.
        name: of the checkpoint.
        weights: as they are.
        best: those of the best state so far.
    """
    earlier = _whole(folder)
    save_file(weights, folder / name / LAST)
    save_file(best, folder / name / BEST)
    (folder / name / COMPLETE).touch()
    for one in earlier:
        shutil.rmtree(one)


def read(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a checkpoint, and those of the best state."""
    return load_file(checkpoint / LAST), load_file(checkpoint / BEST)


def is_sharded(checkpoint: Path) -> bool:
    """Whether FSDP wrote one; Trainer keeps the optimizer of others in a file of its own."""
    return not (checkpoint / OPTIMIZER_NAME).exists()


def on_host(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """All of what trains, in the memory of the first process' host; every process has to ask."""
    found = {}
    for name, parameter in parameters:
        value = sharded.whole(parameter.detach())
        if ranks.first():
            found[name] = value.cpu().contiguous()
    return found


def last(folder: Path) -> str | None:
    """The checkpoint to resume from; deletes what was left unfinished."""
    whole = _whole(folder)
    for part in folder.glob("checkpoint-*"):
        if part not in whole:
            shutil.rmtree(part)
    return str(max(whole, key=lambda found: int(found.name.rpartition("-")[2]))) if whole else None


def _whole(folder: Path) -> list[Path]:
    """The checkpoints of a training that were written to their end."""
    return [file.parent for file in folder.glob(f"checkpoint-*/{COMPLETE}")]
