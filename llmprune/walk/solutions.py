"""Solved sites on disk, one file a block, read back block by block: a model's worth never is in memory."""

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
        folder: made if it is not there; what it holds from an earlier run is found again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, block: int, solved: dict[str, Solved]) -> None:
        """Keep the solved sites of one block, by their names; the file is whole or not there.

        Raises:
            JobError: the disk is full, or the folder cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for name, site in solved.items():
            tensors |= {f"{name}:weight": site.weight, f"{name}:keep": site.keep}
            if site.bias is not None:
                tensors[f"{name}:bias"] = site.bias
            notes = json.dumps(site.notes).encode()
            tensors[f"{name}:notes"] = torch.frombuffer(bytearray(notes), dtype=torch.uint8)
        save_atomically(tensors, self._file(block))

    def get(self, block: int) -> dict[str, Solved]:
        """The solved sites of one block by their names; empty if none are kept."""
        if not self._file(block).is_file():
            return {}
        with safe_open(self._file(block), framework="pt") as file:
            held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        names = dict.fromkeys(key.rpartition(":")[0] for key in held)
        return {name: _solved(name, held) for name in names}

    def _file(self, block: int) -> Path:
        return self.folder / f"solved-{block:05d}.safetensors"


def _solved(name: str, held: dict[str, Tensor]) -> Solved:
    notes = json.loads(bytes(held[f"{name}:notes"].tolist()))
    return Solved(held[f"{name}:weight"], held[f"{name}:keep"], held.get(f"{name}:bias"), notes)
