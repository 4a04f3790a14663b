"""Train a pruned model on transformers' Trainer: our loss, zeros that stay, the best state on other windows.

A run that was killed resumes from its last checkpoint, and ends with the same bits.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from llmprune import ranks
from llmprune.errors import JobError, RequestError
from llmprune.training import checkpoints, sharded
from llmprune.training.keep_zeros import KeepZeros
from llmprune.training.pace import Saving, Telling
from llmprune.training.rates import scaled
from llmprune.training.sharded import local, whole
from llmprune.training.teacher import Lesson, Teacher

LOOKS = 10  # at the held-out windows, over a run


@dataclass(frozen=True)
class Course:
    """How to train."""

    rate: float
    """Peak learning rate: it rises for a tenth of the steps, then falls as a cosine to a tenth of it."""

    windows: int
    """Windows of one step; one at a time is in memory."""

    relative: bool = False
    """Whether the rate of each parameter is that share of the root mean square of its values at the start."""

    decay: float = 0.0
    seed: int = 0
    bfloat16: bool = False
    """Whether products are computed in bfloat16; weights and optimiser stay in float32."""

    stored: torch.dtype = torch.float32
    """To which weights are rounded where held-out windows judge them."""

    report_to: str = "none"
    """Where Trainer logs to: `tensorboard`, `trackio`, `wandb`."""

    zeros: KeepZeros = field(default_factory=KeepZeros)
    """Keeps them, or chooses others on the way."""

    settles: int = 0
    """Steps before the first state that may be kept."""


@dataclass(frozen=True)
class Trained:
    """What a training did."""

    losses: list[float]
    """Mean loss of every step."""

    held_out: list[tuple[int, float]]
    """Steps done, and the loss on held-out windows then; the first is that of the start."""

    settles: int
    """Steps before the first state that may be kept."""

    @property
    def start(self) -> float:
        """The held-out loss of the start."""
        return self.held_out[0][1]

    @property
    def end(self) -> float:
        """That of the state that was kept."""
        return min(loss for step, loss in self.held_out if step >= self.settles)


def train(
    model: Any, lesson: Lesson, windows: Tensor, held_out: Tensor, course: Course, folder: Path
) -> Trained:
    """Train the parameters that require a gradient, and leave the model in its best state.

    Under FSDP2 a copy trains, of which every process keeps a share; the model waits on the CPU.

    Args:
        model: the student, its weights in float32.
        lesson: its loss.
        windows: token ids [N, L] in the order of training; a rest that fills no step is left out.
        held_out: windows [M, L] that judge.
        course: how to train.
        folder: for checkpoints of the training, from which an interrupted one resumes.

    Raises:
        RequestError: FSDP2 was asked, on a CPU; or what is resumed ran in another way.
        JobError: the loss is not finite, or memory or disk ran out.
    """
    device, shares = model.device, sharded.asked()
    trains = copy.deepcopy(model.cpu()) if shares else model
    steps = len(windows) // course.windows
    windows = windows[: steps * course.windows]  # or Trainer, resumed at its end, goes on
    arguments = _arguments(course, steps, folder, cpu=device.type == "cpu")
    trainer = _Trainer(trains, arguments, lesson, windows, held_out, course)
    last = ranks.from_first(lambda: checkpoints.last(folder))
    if last is not None and checkpoints.is_sharded(Path(last)) != shares:
        raise RequestError(
            "resume",
            f"the training was interrupted {'without' if shares else 'under'} FSDP; launch it so again",
        )
    if shares:
        teacher = lesson.dense if isinstance(lesson, Teacher) else None
        ranks.exchange(partial(sharded.share, trainer.accelerator, trains, teacher))
    trainer.args.eval_on_start = last is None
    try:
        with torch.enable_grad():
            ranks.exchange(partial(trainer.train, resume_from_checkpoint=last))
    except torch.OutOfMemoryError as error:
        raise JobError(
            f"memory ran out on a window of {windows.shape[1]} tokens; start again with a smaller --length"
        ) from error
    except (OSError, SafetensorError) as error:
        raise JobError(f"cannot write {folder}: {error}; fix that, then rerun with --resume") from error
    trainer.accelerator.unwrap_model(trains, keep_fp32_wrapper=False)  # its forward pass computes as before
    _place(model.to(device) if shares else model, trainer.best)
    history = trainer.state.log_history
    return Trained(
        [entry["loss"] for entry in history if "loss" in entry],
        [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
        course.settles,
    )


@torch.no_grad()
def judged(model: Any, lesson: Lesson, held_out: Tensor, dtype: torch.dtype) -> float:
    """The mean loss of a model on windows [M, L], with products of a dtype."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        losses = [
            float(lesson(ids, model(input_ids=ids, use_cache=False, output_hidden_states=False)))
            for ids in held_out.to(device).split(1)
        ]
    return sum(losses) / len(losses)


class _Trainer(Trainer):  # type: ignore[misc]  # transformers declares it as Any
    """Windows in their order, our loss, and checkpoints of what trains alone."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        lesson: Lesson,
        windows: Tensor,
        held_out: Tensor,
        course: Course,
    ) -> None:
        saving = Saving()
        super().__init__(
            model,
            arguments,
            train_dataset=[{"input_ids": ids} for ids in windows],
            eval_dataset=[{"input_ids": ids} for ids in held_out],
            callbacks=[course.zeros, saving, Telling(course.windows * windows.shape[1])],
        )
        self._saving, self._zeros = saving, course.zeros
        self.remove_callback(PrinterCallback)
        self._lesson, self._stored, self._settles = lesson, course.stored, course.settles
        self._relative = course.relative
        self.best: dict[str, Tensor] = {}
        """The trained weights of the best state so far."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW, its rates by the scale of each parameter where that was asked."""
        optimizer = super().create_optimizer(model)
        if self._relative:
            optimizer.param_groups = scaled(optimizer.param_groups)
        return optimizer

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Take the gradients of a batch; those that other ranks added know no zeros."""
        ranks.advance()
        loss: Tensor = super().training_step(model, *args, **kwargs)
        if ranks.count() > 1:
            self._zeros.mask_gradients(self.model)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """The lesson's loss of a batch.

        Raises:
            JobError: it is not finite.
        """
        ids = inputs["input_ids"]
        states = self._lesson.states and model.training  # held-out windows judge predictions alone
        loss = self._lesson(ids, model(input_ids=ids, use_cache=False, output_hidden_states=states))
        if not math.isfinite(value := float(loss.detach())):
            step = self.state.global_step + 1
            raise JobError(f"the loss of step {step} is {value}; start again with a lower learning rate")
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Judge the weights as they will be stored, and keep them if they are the best so far."""
        settles = self._settles
        known = [e["eval_loss"] for e in self.state.log_history if "eval_loss" in e and e["step"] >= settles]
        with _rounded(self.model, self._stored):
            found: dict[str, float] = super().evaluate(*args, **kwargs)
        sharded.release(self.model)
        if self.state.global_step >= settles and (not known or found["eval_loss"] < min(known)):
            self.best = {name: whole(p.detach()).to("cpu", copy=True) for name, p in _trained(self.model)}
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write one, and only then delete the one before it."""
        start, folder = time.monotonic(), Path(self.args.output_dir)
        super()._save_checkpoint(model, trial)
        weights = checkpoints.on_host(_trained(self.model))
        name = f"checkpoint-{self.state.global_step}"
        ranks.from_first(lambda: checkpoints.complete(folder, name, weights, self.best))
        self._saving.wrote(time.monotonic() - start)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Leave the weights to `_save_checkpoint`."""
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights, self.best = checkpoints.read(Path(resume_from_checkpoint))
        _place(self.model, weights)


def _arguments(course: Course, steps: int, folder: Path, *, cpu: bool) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=course.windows // ranks.count(),
        learning_rate=course.rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=round(0.1 * steps),
        adam_beta2=0.95,
        weight_decay=course.decay,
        seed=course.seed,
        bf16=course.bfloat16,
        use_cpu=cpu,
        eval_strategy="steps",
        eval_steps=max(1, round(steps / LOOKS)),
        save_strategy="no",  # `Saving` says when
        logging_steps=1,
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        label_names=["input_ids"],  # or Trainer would not compute the loss of held-out windows
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=course.report_to,
    )
    _ = arguments.device  # counts the GPUs
    arguments._n_gpu = 1  # the model is on one; Trainer would split every batch over all
    return arguments


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _place(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in _trained(model):
        sharded.place(parameter, weights[name])


@contextmanager
def _rounded(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Round the trained weights for a while; adapters round their sum with the weight themselves."""
    weights = [local(p.data) for name, p in _trained(model) if "parametrizations" not in name]
    exact = [weight.clone() for weight in weights]
    for weight in weights:
        weight.copy_(weight.to(dtype))
    try:
        yield
    finally:
        for weight, value in zip(weights, exact, strict=True):
            weight.copy_(value)
