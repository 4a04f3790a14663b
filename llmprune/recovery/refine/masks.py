"""The masks of a model in memory, the weights beneath them, and the loss by which they are refined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmprune.model.site import Site


@dataclass(frozen=True)
class Masked:
    """One linear layer of the pruned model; removed weights are zeros. O outputs, I inputs."""

    site: Site
    values: Tensor
    """The weights [O, I] as they are wherever they are kept."""

    group: int
    """How many neighbours in a row compete; I where all of them do, O I where all of the matrix do."""

    @property
    def parameter(self) -> nn.Parameter:
        """The weight that the model computes with."""
        return self.site.layer.get_parameter(self.site.leaf)

    @property
    def gone(self) -> Tensor:
        """bool [O, I], True where a weight is removed."""
        return self.site.matrix(self.parameter.data) == 0

    def remove(self, gone: Tensor) -> None:
        """Set the mask: bool [O, I], True to remove."""
        self.site.matrix(self.parameter.data).copy_(self.values.masked_fill(gone, 0))

    def taken_gradient(self) -> Tensor:
        """The gradient [O, I] since it was last taken."""
        parameter = self.parameter
        assert parameter.grad is not None
        own = self.site.matrix(parameter.grad)
        if self.site.shares_parameter:  # the rest is other experts'
            gradient = own.to(torch.float32, copy=True)
            own.zero_()
            return gradient
        parameter.grad = None
        return own.float()


@dataclass(frozen=True)
class Loss:
    """KL to the dense model, or the cross-entropy of the text where there is none; in nats a token."""

    model: Any
    teacher: Any | None

    def of(self, ids: Tensor, logs: Tensor) -> Tensor:
        """The loss of token ids [L] under log-probabilities [L - 1, V]."""
        ids = ids[None].to(logs.device)
        if self.teacher is None:
            return nn.functional.nll_loss(logs, ids[0, 1:])
        with torch.no_grad():
            dense = self.teacher(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        return nn.functional.kl_div(logs, dense, log_target=True, reduction="batchmean")

    def logs(self, ids: Tensor) -> Tensor:
        """The model's log-probabilities [L - 1, V] of what follows each of the token ids [L] but the last."""
        logits: Tensor = self.model(input_ids=ids[None].to(self.model.device), use_cache=False).logits
        return logits[0, :-1].float().log_softmax(-1)

    @torch.no_grad()
    def mean(self, windows: Tensor) -> float:
        """Over windows [N, L]."""
        return sum(float(self.of(ids, self.logs(ids))) for ids in windows) / len(windows)

    def backward(
        self, ids: Tensor, masks: list[Masked], draws: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield two gradients [O, I] of every matrix on token ids [L]: the loss's, and a root of curvature.

        The second is of tokens that the model itself draws. Its mean square is the Gauss-Newton curvature of
        the loss (arXiv:1412.1193), which that of the loss's own gradient is not.
        """
        with torch.enable_grad():
            logs = self.logs(ids)
            self.of(ids, logs).backward(retain_graph=True)
        gradients = [mask.taken_gradient() for mask in masks]
        with torch.enable_grad():
            drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=draws).to(logs.device)
            # Tokens are drawn independently, so that the sum of their gradients grows with the root.
            (-logs.gather(1, drawn).sum() / len(drawn) ** 0.5).backward()
        for gradient, mask in zip(gradients, masks, strict=True):
            yield gradient, mask.taken_gradient()
