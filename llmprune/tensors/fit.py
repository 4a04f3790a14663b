"""Refit a linear layer: the least-squares change of its weight against an error of its outputs.

Letters used in shapes: B sequences, T tokens, O outputs, I inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmprune.tensors import ops
from llmprune.tensors.held_out import RIDGES, USUAL
from llmprune.tensors.statistics import Total

STEPS = 200  # most iterations of conjugate gradients, used if zeros must stay


class Fit:
    """The normal equations of a layer: find the change of its weight that reduces the output error.

    Args:
        inputs: I.
        outputs: O.
        biased: whether the layer has a bias, which then changes too.
        device: where sums are kept.
    """

    def __init__(self, inputs: int, outputs: int, biased: bool, device: torch.device) -> None:
        self.centred = biased
        self._tokens = 0
        self._gram = torch.zeros(inputs, inputs, device=device)
        self._cross = torch.zeros(inputs, outputs, device=device)
        self._x_sum = torch.zeros(inputs, dtype=torch.float64, device=device)
        self._e_sum = torch.zeros(outputs, dtype=torch.float64, device=device)
        self._e_square, self._y_square = 0.0, 0.0

    def update(self, x: Tensor, target: Tensor, error: Tensor) -> None:
        """Account for inputs [B, T, I], the dense outputs and the output errors, both [B, T, O]."""
        x, error = x.flatten(0, -2).float(), error.flatten(0, -2).to(x.device, torch.float32)
        self._tokens += len(x)
        ops.add_gram(self._gram, x)
        self._cross.addmm_(x.T, error)
        self._x_sum += x.sum(0)
        self._e_sum += error.sum(0)
        self._e_square += float(error.double().square().sum())
        self._y_square += float(target.double().square().sum())

    def add_up(self, total: Total) -> None:
        """Account for the sums of other processes."""
        scalars = torch.tensor([[self._tokens, self._e_square, self._y_square]], dtype=torch.float64)
        total(scalars)
        self._tokens = int(scalars[0, 0])
        self._e_square, self._y_square = scalars[0, 1:].tolist()
        for part in (self._gram, self._cross, self._x_sum[None], self._e_sum[None]):
            total(part)

    def solve(self, ridge: float, keep: Tensor | None) -> Tensor:
        """Return the step [O, I] of the weight, zero where `keep` is False."""
        gram, cross = ops.mirrored(self._gram).double(), self._cross.double()
        if self.centred:  # the bias absorbs the means, so the weight is fitted to covariances
            gram -= torch.outer(self._x_sum, self._x_sum) / self._tokens
            cross -= torch.outer(self._x_sum, self._e_sum) / self._tokens
        gram.diagonal().add_(ridge * float(gram.diagonal().mean()) or 1.0)
        if keep is None:
            step: Tensor = torch.linalg.solve(gram, cross).T
            return step
        # With a mask each row has its own support, and a factorisation per row would be far slower.
        return conjugate_gradients(gram, cross.T, keep, STEPS)

    def bias(self, step: Tensor) -> Tensor:
        """Return the step [O] of the bias that belongs to a step of the weight."""
        return (self._e_sum - step @ self._x_sum) / self._tokens

    def __add__(self, other: Fit) -> Fit:
        """The normal equations of both texts."""
        inputs, outputs = self._cross.shape
        found = Fit(inputs, outputs, self.centred, self._gram.device)
        for name in ("_tokens", "_gram", "_cross", "_x_sum", "_e_sum", "_e_square", "_y_square"):
            setattr(found, name, getattr(self, name) + getattr(other, name))
        return found

    def chosen(self, held_out: Fit, keep: Tensor | None) -> float:
        """The ridge whose step, solved here, has the least error on a text that was held out.

        Args:
            held_out: its sums.
            keep: where the weight may change, as in `solve`.
        """
        if not held_out._tokens:  # fewer batches than one is held out of
            return USUAL
        steps = {ridge: self.solve(ridge, keep) for ridge in RIDGES}
        bias = {ridge: self.bias(step) if self.centred else None for ridge, step in steps.items()}
        return min(RIDGES, key=lambda ridge: held_out.error(steps[ridge], bias[ridge]))

    def error(self, step: Tensor | None, bias: Tensor | None = None) -> float:
        """Return ||output error|| / ||dense output||, after a step of weight and bias, or before if None.

        Args:
            step: of the weight [O, I].
            bias: its step [O]; the one that suits these sums unless given.
        """
        square = self._e_square  # expanded: ||e - s x - b||^2 needs sums only, and no second pass
        if step is not None:
            gram = ops.mirrored(self._gram).double()
            square += float(((step @ gram) * step).sum() - 2 * (step * self._cross.double().T).sum())
            if self.centred:
                bias = self.bias(step) if bias is None else bias
                rest = self._e_sum - step @ self._x_sum
                square += float(self._tokens * bias.square().sum() - 2 * bias @ rest)
        # The terms nearly cancel for a good fit, so rounding may make the sum negative.
        return math.sqrt(max(square, 0.0) / max(self._y_square, 1e-30))


def conjugate_gradients(gram: Tensor, cross: Tensor, keep: Tensor, steps: int) -> Tensor:
    """Return the step S [O, I], zero outside `keep`, that minimises S G S^T / 2 - S C^T row by row.

    Args:
        gram: G [I, I].
        cross: C [O, I].
        keep: bool [O, I].
        steps: most to take.
    """
    step = torch.zeros_like(cross)
    residual = cross * keep
    direction = residual.clone()
    square = residual.square().sum(1, keepdim=True)
    tolerance = 1e-8 * square
    tiny = torch.finfo(cross.dtype).tiny  # rows that are solved already: 0 / 0
    for _ in range(steps):
        if bool((square <= tolerance).all()):
            break
        image = (direction @ gram) * keep
        length = square / (direction * image).sum(1, keepdim=True).clamp_min(tiny)
        step += length * direction
        residual -= length * image
        last, square = square, residual.square().sum(1, keepdim=True)
        direction = residual + direction * (square / last.clamp_min(tiny))
    return step
