"""Windows of tokens [N, L], and their record in the report."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from llmprune.errors import RequestError
from llmprune.report import CalibrationRecord

HELD_OUT = 8  # of so many windows, one is held out where windows choose
RUN = 64  # tokens in a row that two texts have by chance only if one was copied


@dataclass(frozen=True)
class Windows:
    """Calibration tokens [N, L], the data set they come from, and the seed."""

    tokens: Tensor
    dataset: str
    seed: int | None
    bos: bool | None = None
    """Whether every window begins with BOS; None if unknown."""
    parts: tuple[Windows, ...] = ()
    """Of a mix: those of every text."""

    def behind(self, bos: tuple[int, ...]) -> Windows:
        """Return the windows with these tokens in front of each: [N, B + L] for B tokens."""
        front = torch.tensor(bos, dtype=self.tokens.dtype).expand(len(self.tokens), -1)
        return replace(self, tokens=torch.cat([front, self.tokens], 1), bos=bool(bos))

    def record(self) -> CalibrationRecord:
        """Return the entry of the report."""
        samples, length = self.tokens.shape
        record: CalibrationRecord = {
            "dataset": self.dataset,
            "samples": samples,
            "length": length,
            "tokens": samples * length,
            "seed": self.seed,
            "sha256": hashlib.sha256(self.tokens.to(torch.int64).numpy().tobytes()).hexdigest(),
        }
        if self.bos is not None:
            record["bos"] = self.bos
        if self.parts:
            record["parts"] = [
                {"dataset": part.dataset, "samples": len(part.tokens), "sha256": part.record()["sha256"]}
                for part in self.parts
            ]
        return record


class Split(NamedTuple):
    """A text: windows to train on [N, L], and those that judge [M, L]."""

    windows: Tensor
    held_out: Tensor


def size_of(tokens: Tensor) -> dict[str, int]:
    """Return the `samples` and the `length` of the caller's windows [N, L], as in a recipe.

    Raises:
        RequestError: the tensor has another number of dimensions, or is empty.
    """
    if tokens.ndim != 2 or not tokens.numel():
        raise RequestError("tokens", f"windows [N, L] are needed, and the shape is {list(tokens.shape)}")
    return {"samples": tokens.shape[0], "length": tokens.shape[1]}


def batched(tokens: Tensor, size: int) -> list[Tensor]:
    """Split windows [N, L] into batches of at most `size` windows."""
    return list(tokens.split(size))


def require_held_out(samples: int) -> None:
    """Refuse a single window where some are held out.

    Raises:
        RequestError: there is one.
    """
    if samples < 2:
        raise RequestError(
            "calibration.samples",
            f"{samples} was asked, and this allocation holds windows out to choose; ask for at least 2",
        )


def with_held_out(batches: list[Tensor], every: int = HELD_OUT) -> tuple[list[Tensor], list[Tensor]]:
    """Split windows into those to calibrate on and the last eighth (or other part), in equal batches.

    Raises:
        RequestError: there is one window.
    """
    windows, size = torch.cat(batches), len(batches[0])
    require_held_out(len(windows))
    count = max(1, len(windows) // every)
    return batched(windows[:-count], size), batched(windows[-count:], size)


def sharing(windows: Tensor, others: Tensor) -> Tensor:
    """Which windows [N, L] have a run of 64 tokens (or of L) in common with others [M, K]: bool [N]."""
    run = min(RUN, windows.shape[1], others.shape[1])
    factors = torch.randint(2**62, (run,), generator=torch.Generator().manual_seed(0))
    # Equal runs have equal sums, whose overflow does no harm; others hardly ever do.
    ours, theirs = (
        sum(ids[:, k : ids.shape[1] - run + 1 + k] * factor for k, factor in enumerate(factors))
        for ids in (windows, others)
    )
    return torch.isin(ours, theirs).any(1)
