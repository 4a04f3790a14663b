"""Solved sites on disk, one file for each block. Those of the whole model need not fit into memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from llmprune.checkpoint.shards import save_atomically
from llmprune.walk.solve import Solved


class Solutions:
    """A folder of solved sites.

    Args:
        folder: created if needed; solved sites that it holds from an interrupted run are used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, block: int, solved: dict[str, Solved]) -> None:
        """Write the solved sites of one block, by their names. The file is written as a whole or not at all.

        Raises:
            JobError: the disk is full, or the folder cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for name, site in solved.items():
            tensors |= {f"{name}:weight": site.weight, f"{name}:keep": site.keep}
            if site.bias is not None:
                tensors[f"{name}:bias"] = site.bias
            # JSON bytes in a tensor, because `save_atomically` writes tensors only.
            notes = json.dumps(site.notes).encode()
            tensors[f"{name}:notes"] = torch.frombuffer(bytearray(notes), dtype=torch.uint8)
        save_atomically(tensors, self._file(block))

    def get(self, block: int) -> dict[str, Solved]:
        """Read the solved sites of one block, by their names; empty if none were written."""
        if not self._file(block).is_file():
            return {}
        with safe_open(self._file(block), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        names = dict.fromkeys(key.rpartition(":")[0] for key in tensors)
        return {name: _solved(name, tensors) for name in names}

    def _file(self, block: int) -> Path:
        return self.folder / f"solved-{block:05d}.safetensors"


def _solved(name: str, tensors: dict[str, Tensor]) -> Solved:
    notes = json.loads(bytes(tensors[f"{name}:notes"].tolist()))
    return Solved(tensors[f"{name}:weight"], tensors[f"{name}:keep"], tensors.get(f"{name}:bias"), notes)
