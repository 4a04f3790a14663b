"""Keep the zeros of a pruned model in training, with any trainer that takes transformers' callbacks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from llmprune.training.sharded import local, whole


class KeepZeros(TrainerCallback):  # type: ignore[misc]  # transformers declares it as Any
    """Weights that are zero when training begins are zero after every step.

    Pass it to transformers' `Trainer`, or one of TRL's: `Trainer(..., callbacks=[KeepZeros()])`. It holds for
    every matrix that trains, but not for one that is zero throughout, which an adapter begins with. Products
    of adapters have no zeros: merge none into a masked model. Gradients of removed weights are zero before
    they are clipped, so that they do not count in the norm. Under FSDP2 every process keeps its share's.
    """

    def __init__(self) -> None:
        self._zeros: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Note where the zeros are."""
        self.watch(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Set them to zero again: weight decay and momentum may have moved them."""
        self.restore(model)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the model's gradients alone."""
        self.forget()

    def watch(self, model: nn.Module) -> None:
        """Take the zeros of a model's trainable matrices as those to keep."""
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or parameter.ndim < 2:
                continue
            zeros = whole(parameter.detach()) == 0
            if zeros.any() and not zeros.all():
                self._zeros[name] = local(parameter.detach()) == 0
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._masking(name)))

    def forget(self) -> None:
        """Let all weights move again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._zeros.clear()

    def restore(self, model: nn.Module) -> None:
        """Set the zeros of a model to zero."""
        for name, parameter in model.named_parameters():
            if name in self._zeros:
                local(parameter.data).masked_fill_(self._zeros[name], 0)

    def mask_gradients(self, model: nn.Module) -> None:
        """Set the gradients of the zeros to zero."""
        for name, parameter in model.named_parameters():
            if name in self._zeros and parameter.grad is not None:
                local(parameter.grad).masked_fill_(self._zeros[name], 0)

    def _masking(self, name: str) -> Any:
        def mask(parameter: Tensor) -> None:
            assert parameter.grad is not None
            local(parameter.grad).masked_fill_(self._zeros[name], 0)

        return mask
