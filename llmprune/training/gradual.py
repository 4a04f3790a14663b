"""Prune further while the model trains: more goes in steps that get smaller (Zhu and Gupta, 2017,
arXiv:1710.01878), chosen anew from the weights as they are, and some come back by their gradients (GraNet,
Liu et al., 2021, arXiv:2106.10404).

Letters used in shapes: N windows, L tokens, O outputs, I inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from llmprune.errors import RequestError
from llmprune.methods.base import PruningMethod, Weights
from llmprune.model.site import Site
from llmprune.patterns.base import Pattern
from llmprune.patterns.n_of_m import NofM
from llmprune.plugins import OPTIONS
from llmprune.tensors.statistics import Nothing, Statistic
from llmprune.training.keep_zeros import KeepZeros
from llmprune.training.teacher import Lesson

HARDLY = 1e-3  # a share that rounding to whole weights may hide
END = 0.7  # of the training: after it masks stay, and the model recovers


@dataclass(frozen=True)
class Schedule:
    """How much is removed when. The start is the share that is gone already."""

    __pydantic_config__: ClassVar[ConfigDict] = OPTIONS

    to: Annotated[float, Field(gt=0, lt=1)]
    """Share of every layer's weights to remove in the end."""

    steps: Annotated[int, Field(ge=1)] = 8
    """How often masks are chosen."""

    regrow: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the weights that stay to exchange for removed ones of larger gradients; none the last time."""

    def require(self, pattern: Pattern, start: float, allocation: str) -> None:
        """Refuse a share that the pattern cannot have, or that is gone already, in some layer perhaps.

        Args:
            pattern: of what is pruned.
            start: share that is gone.
            allocation: what shared it out.

        Raises:
            RequestError: it says which.
        """
        if pattern.prunes != "linear":
            raise RequestError(
                "recovery.schedule",
                f"a schedule removes single weights, and {pattern} was asked; use unstructured or N:M",
            )
        if allocation != "uniform":
            raise RequestError(
                "recovery.schedule",
                f"a schedule removes the same share of every layer, and {allocation} shared out what is gone"
                "; prune with allocation uniform",
            )
        if self.to <= start + HARDLY:
            raise RequestError(
                "recovery.schedule.to",
                f"{self.to:g} was asked, and {start:.3g} of the weights are gone already; ask for more",
            )
        reached = at(pattern, self.to).only_sparsity
        if reached is not None and abs(reached - self.to) > HARDLY:
            raise RequestError(
                "recovery.schedule.to",
                f"{self.to:g} was asked, and {pattern} goes down to {reached:g} or another whole number of "
                f"{pattern.group}; ask for that",
            )

    def shares(self, start: float, training: int) -> dict[int, float]:
        """The share that is gone from every step of the training on where masks are chosen.

        Args:
            start: share that is gone.
            training: steps of the training.

        Raises:
            RequestError: there are more choices than steps.
        """
        last = int(END * training)
        if self.steps > last:
            raise RequestError(
                "recovery.schedule.steps",
                f"{self.steps} were asked, and {training} steps of training have room for {last}; ask for "
                "fewer, or for more tokens",
            )
        parts = [number / self.steps for number in range(1, self.steps + 1)]
        return {round(last * part): self.to + (start - self.to) * (1 - part) ** 3 for part in parts}


@dataclass
class Masks:
    """The masks of a whole model in memory, and how they are chosen."""

    model: Any
    sites: list[Site]
    method: PruningMethod
    pattern: Pattern
    windows: Tensor
    """Token ids [N, L] that statistics and gradients come from."""
    lesson: Lesson

    @torch.no_grad()
    def choose(
        self, share: float, regrow: float = 0.0, rates: Mapping[nn.Parameter, float] | None = None
    ) -> None:
        """Remove a share of every layer, as the method does from the weights as they are.

        Args:
            share: to remove.
            regrow: share of the weights that stay to exchange for removed ones of larger gradients.
            rates: what a weight that comes back begins with, against its gradient, by its parameter: a first
                step of Adam.
        """
        gradients = self._gradients() if regrow else {}
        statistics = self._statistics()
        for site in self.sites:
            more = share + regrow * (1 - share)
            pattern, weights = at(self.pattern, more), Weights(_matrix(site), site.index)
            solution = self.method.solve(weights, statistics[site.name], pattern, more)
            matrix = solution.weight
            if regrow:
                gradient, before = gradients[site.name], weights.matrix
                # Where nothing reads a channel there is no gradient: what just went comes back as it was.
                wanted = gradient.abs() + torch.finfo(before.dtype).tiny * (before != 0)
                kept = at(self.pattern, share).keep(wanted.masked_fill(solution.keep, torch.inf), share)
                assert rates is not None
                rate = rates[site.layer.get_parameter(site.leaf)]
                begun = torch.where(gradient == 0, before, -rate * gradient.sign())
                matrix = torch.where(kept & ~solution.keep, begun, matrix)
            _place(site, matrix)

    @contextmanager
    def tried(self, share: float) -> Iterator[None]:
        """Remove a share at once, for a while."""
        before = [_matrix(site).clone() for site in self.sites]
        self.choose(share)
        try:
            yield
        finally:
            for site, matrix in zip(self.sites, before, strict=True):
                _place(site, matrix)

    def _statistics(self) -> dict[str, Statistic]:
        """Of every layer's inputs."""
        needs = self.method.needs
        found = {site.name: needs(site.inputs, site.weight.device) for site in self.sites}
        if needs is Nothing:
            return found
        with ExitStack() as hooks:
            for site in self.sites:
                observe = _observing(site, found[site.name])
                hooks.callback(site.layer.register_forward_pre_hook(observe, with_kwargs=True).remove)
            for ids in self._read():
                self.model(input_ids=ids, use_cache=False)
        return found

    def _gradients(self) -> dict[str, Tensor]:
        """Of the loss by every weight [O, I], those that are gone included."""
        with torch.enable_grad():
            for ids in self._read():
                student = self.model(input_ids=ids, use_cache=False, output_hidden_states=False)
                self.lesson(ids, student).backward()
        found = {}
        for site in self.sites:
            gradient = site.layer.get_parameter(site.leaf).grad
            assert gradient is not None
            found[site.name] = site.matrix(gradient).clone()
        self.model.zero_grad()
        return found

    def _read(self) -> Iterable[Tensor]:
        windows: Iterable[Tensor] = self.windows.to(self.model.device).split(1)
        return windows


class Gradual(KeepZeros):
    """Keeps zeros, and chooses others at the beginning of the steps that a schedule names.

    All that it does follows from the weights as they are, so that a training that is resumed ends alike.
    """

    def __init__(
        self, masks: Masks, schedule: Schedule, start: float, training: int, one_shot: float
    ) -> None:
        super().__init__()
        self.one_shot = one_shot
        """Held-out loss in nats of the same share, removed at once."""
        self._masks, self._regrow, self._shares = masks, schedule.regrow, schedule.shares(start, training)
        self.settles = max(self._shares) + 1
        """Steps after which a state has the share that was asked."""

    def on_step_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
        """Choose masks, where it is time to."""
        if (share := self._shares.get(state.global_step)) is None:
            return
        regrow = 0.0 if state.global_step + 1 == self.settles else self._regrow
        self.forget()
        rates = {p: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
        self._masks.choose(share, regrow, rates)
        self.watch(self._masks.model)


def gone(sites: Iterable[Site]) -> dict[str, int]:
    """How many weights are zero, by site."""
    return {site.name: int((site.weight == 0).sum()) for site in sites}


def at(pattern: Pattern, share: float) -> Pattern:
    """The pattern that removes a share: of N of M, another N."""
    if not isinstance(pattern, NofM):
        return pattern
    return dataclasses.replace(pattern, n=min(max(round(pattern.m * (1 - share)), 1), pattern.m - 1))


def _matrix(site: Site) -> Tensor:
    """The weights [O, I]."""
    return site.matrix(site.weight)


def _place(site: Site, matrix: Tensor) -> None:
    site.matrix(site.weight).copy_(matrix)


def _observing(site: Site, statistic: Statistic) -> Callable[..., None]:
    def observe(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        statistic.update(site.input_from_call(*arguments, **named).flatten(0, -2).float())

    return observe
