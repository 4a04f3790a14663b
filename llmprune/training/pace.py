"""When a training writes a checkpoint, and what it says of its progress."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from llmprune import ranks
from llmprune.progress import say

SAVE_EVERY = 60.0  # seconds of training before the first checkpoint, and between two
SETTLED = 3  # steps after which their time tells of the others
SHARE = 0.03  # most of the time that goes into writing them


class Saving(TrainerCallback):  # type: ignore[misc]
    """Evaluates at the end, and saves so rarely that writing takes a small share of the time."""

    def __init__(self) -> None:
        self._due = time.monotonic() + SAVE_EVERY

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate and save after the last step, and save where that is due."""
        last = state.global_step == state.max_steps
        control.should_evaluate |= last
        due = ranks.gathered([time.monotonic() >= self._due])  # clocks differ, and all save together
        control.should_save = last or due[0]

    def wrote(self, seconds: float) -> None:
        """Wait for the next checkpoint, given how long this one took."""
        self._due = time.monotonic() + max(SAVE_EVERY, seconds / SHARE)


class Telling(TrainerCallback):  # type: ignore[misc]
    """Says how far training is, and what the held-out windows say."""

    def __init__(self, tokens: int) -> None:
        self._tokens, self._began, self._from = tokens, time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note where this run begins."""
        self._began, self._from = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say what a million tokens take, once that can be told."""
        if state.global_step == self._from + SETTLED:
            pace = (time.monotonic() - self._began) / SETTLED
            hours = pace / self._tokens * 1e6 / 3600
            left = pace * (state.max_steps - state.global_step) / 60
            say(f"a million tokens take {hours:.2g} hours here; {left:.0f} minutes left")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print one line."""
        done, loss = state.global_step, kwargs["metrics"]["eval_loss"]
        line = (
            f"{done * self._tokens:,} of {state.max_steps * self._tokens:,} tokens: held-out loss {loss:.4f}"
        )
        if done > self._from:
            pace = (time.monotonic() - self._began) / (done - self._from)
            line += f", {pace * (state.max_steps - done) / 60:.0f} minutes left"
        say(line)
