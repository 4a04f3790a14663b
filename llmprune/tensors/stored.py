"""A statistic as tensors that a file can hold, and back: whatever tensors it holds are its sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from llmprune.tensors.statistics import Statistic


def tensors_of(statistic: Statistic) -> dict[str, Tensor]:
    """Everything that was summed up, by name; what is derived from it is computed again."""
    found = {name: held for name, held in vars(statistic).items() if isinstance(held, Tensor)}
    for name, part in _inside(statistic):
        found |= {f"{name}.{key}": held for key, held in tensors_of(part).items()}
    return {"tokens": torch.tensor(statistic.tokens), **found}


def restore(statistic: Statistic, tensors: Mapping[str, Tensor]) -> None:
    """Put what `tensors_of` gave into a new statistic of the same kind, on its device."""
    statistic.tokens = int(tensors["tokens"])
    for name, held in vars(statistic).items():
        if isinstance(held, Tensor):
            setattr(statistic, name, tensors[name].to(held.device))
    for name, part in _inside(statistic):
        start = f"{name}."
        restore(part, {key.removeprefix(start): x for key, x in tensors.items() if key.startswith(start)})


def _inside(statistic: Statistic) -> Iterator[tuple[str, Statistic]]:
    """The statistics that one consists of, by name."""
    for name, held in vars(statistic).items():
        if isinstance(held, Statistic):
            yield name, held
        elif isinstance(held, list):
            yield from ((f"{name}{number}", part) for number, part in enumerate(held))
