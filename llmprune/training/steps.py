"""Train the trainable parameters of a model on windows of text, and resume after an interrupt."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmprune.checkpoint.shards import save_atomically
from llmprune.errors import JobError
from llmprune.progress import track

WARM_UP = 0.1  # share of the steps with a rising learning rate; afterwards it falls towards zero
SAVE_EVERY = 60.0  # seconds of training that an interrupt may lose


class Training:
    """A loop of AdamW steps; it ends with the same weights, however often it is interrupted and resumed."""

    def __init__(self, model: nn.Module, rate: float, seed: int, file: Path) -> None:
        self._model, self._rate, self._seed, self._file = model, rate, seed, file
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(self._trained.values())
        self.losses: list[float] = []
        """The loss of every completed step."""
        if file.is_file():
            self._restore(load_file(file))

    def run(self, batches: list[Tensor], label: str) -> None:
        """Take one step per batch of token ids [windows, tokens], except for the steps already completed.

        Raises:
            JobError: the loss is not finite, or memory ran out.
        """
        self._model.train()
        saved = time.monotonic()
        for step, ids in enumerate(track(batches, label)):
            if step < len(self.losses):
                continue
            self.losses.append(self._step(ids, self._rate * _rate_factor(step, len(batches))))
            if step + 1 == len(batches) or time.monotonic() - saved >= SAVE_EVERY:
                save_atomically(self._state(), self._file)
                saved = time.monotonic()

    def _step(self, ids: Tensor, rate: float) -> float:
        # Seeded in every step, so that dropout is the same after a resume.
        torch.manual_seed(self._seed + len(self.losses))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(ids.to(next(iter(self._trained.values())).device))
        if not math.isfinite(loss):
            raise JobError(
                f"the loss of step {len(self.losses) + 1} is {loss}; start again with a lower learning rate"
            )
        nn.utils.clip_grad_norm_(self._trained.values(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def _gradients(self, ids: Tensor) -> float:
        """Add to the gradients, and return the loss."""
        try:
            loss = self._model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
        except torch.OutOfMemoryError as error:
            windows, tokens = ids.shape
            raise JobError(
                f"memory ran out in a step of {windows} x {tokens} tokens; start again with a smaller batch"
            ) from error
        return float(loss.detach())

    def _state(self) -> dict[str, Tensor]:
        """Return all tensors to save, with keys `<parameter>:value` and `<parameter>:<name in AdamW>`."""
        # A flat mapping of tensors fits into safetensors, which `optimizer.state_dict()` does not.
        kept = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        for name, parameter in self._trained.items():
            kept[f"{name}:value"] = parameter
            kept |= {f"{name}:{key}": value for key, value in self._optimizer.state[parameter].items()}
        return kept

    def _restore(self, kept: dict[str, Tensor]) -> None:
        self.losses = kept.pop("losses").tolist()
        for key, value in kept.items():
            name, _, what = key.rpartition(":")
            parameter = self._trained[name]
            if what == "value":
                parameter.data.copy_(value)
            else:
                # AdamW counts its steps on the CPU, whatever the device of the parameter.
                where = value.device if what == "step" else parameter.device
                self._optimizer.state[parameter][what] = value.to(where)


def _rate_factor(step: int, steps: int) -> float:
    """Return the learning rate of one step as a share of the peak: linear warm-up, then linear decay."""
    warm = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))
