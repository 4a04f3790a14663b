"""Train the policies by policy gradient (Williams, 1992) on whole sets of units.

A set is drawn without replacement (Plackett-Luce). Its probability is raised if it changes the block's
spectrum less than earlier sets did, and lowered if it changes it more.

Letters used in shapes: U units.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmprune.methods.base import Examples, Weights
from llmprune.methods.prunenet.policy import ByPolicy, Policy, SiteShape, feature_count, features, part, shape
from llmprune.methods.prunenet.spectrum import Spectrum
from llmprune.tensors.statistics import Gram

if TYPE_CHECKING:  # the package imports this module
    from llmprune.methods.prunenet import PruneNet

MOMENTUM = 0.9  # of the moving averages of a block's baseline


def trained(method: PruneNet, examples: Examples) -> ByPolicy:
    """Train on every block `passes` times, and visit all once more to evaluate the last policy."""
    start = time.perf_counter()
    trainers: dict[str, Trainer] = {}
    for number in range(method.passes + 1):
        for weights, statistic in examples(Gram):
            name = part(weights)
            if name not in trainers:
                trainers[name] = Trainer(method, shape(weights))
            trainers[name].visit(weights, statistic, learning=number < method.passes)
        for trainer in trainers.values():
            trainer.end_pass()
            trainer.start_pass()
    record = {
        "shapes": {name: trainer.shape for name, trainer in trainers.items()},
        "losses": {name: trainer.curve for name, trainer in trainers.items()},
        "share": method.share,
        "seed": method.seed,
        "seconds": time.perf_counter() - start,
    }
    return ByPolicy({name: t.best.requires_grad_(False) for name, t in trainers.items()}, record)


@dataclass
class Baseline:
    """Moving mean and standard deviation of the rewards of a block's draws."""

    mean: float = 0.0
    spread: float = 0.0
    started: bool = False

    def advantages(self, rewards: Tensor) -> Tensor:
        """Return how much better than the baseline each draw was, in standard deviations; then update it."""
        # Each block has a baseline of its own: blocks differ in how much any draw changes them.
        if not self.started:
            self.mean, self.spread, self.started = float(rewards.mean()), float(rewards.std()), True
        advantages = (rewards - self.mean) / max(self.spread, 1e-12)
        self.mean += (1 - MOMENTUM) * (float(rewards.mean()) - self.mean)
        self.spread += (1 - MOMENTUM) * (float(rewards.std()) - self.spread)
        return advantages


@dataclass
class Trainer:
    """Train the policy of one part of the blocks."""

    method: PruneNet
    shape: SiteShape
    policy: Policy = field(init=False)
    best: Policy = field(init=False)
    curve: list[float] = field(default_factory=list)
    """Mean change of the spectrum over all blocks, before each pass and at the end."""

    def __post_init__(self) -> None:
        self.policy = Policy(feature_count(self.shape), self.method.seed)
        self.best = copy.deepcopy(self.policy)
        self._optimiser = torch.optim.Adam(self.policy.parameters(), lr=self.method.rate)
        self._generator = torch.Generator().manual_seed(self.method.seed)
        self._baselines: dict[int, Baseline] = {}
        self.start_pass()

    def start_pass(self) -> None:
        """Start to evaluate a copy of the current policy on all blocks, while training continues."""
        # Evaluated while it trains: a separate evaluation would take another forward pass over the text.
        self._evaluated, self._losses = copy.deepcopy(self.policy), list[float]()

    def end_pass(self) -> None:
        """Keep the evaluated policy if it is the best so far."""
        loss = sum(self._losses) / len(self._losses)
        if not self.curve or loss < min(self.curve):
            self.best = self._evaluated
        self.curve.append(loss)

    def visit(self, weights: Weights, statistic: Gram, *, learning: bool) -> None:
        """Evaluate the policy on one block, and train it there if `learning`."""
        inputs = features(weights, statistic).cpu()
        spectrum = Spectrum(weights.matrix.float(), statistic.value)
        kept_units = weights.units - round(self.method.share * weights.units)
        width = weights.matrix.shape[1] // weights.units

        def change(kept: Tensor) -> float:
            removed = torch.ones(weights.units, dtype=torch.bool)
            removed[kept] = False
            return spectrum.change(removed.repeat_interleave(width).to(weights.matrix.device))

        self._losses.append(change(self._evaluated(inputs).topk(kept_units).indices))
        for _ in range(self.method.steps if learning else 0):
            self._step(inputs, kept_units, change, self._baselines.setdefault(weights.index, Baseline()))

    @torch.enable_grad()  # a run prunes under `no_grad`
    def _step(
        self, inputs: Tensor, kept_units: int, change: Callable[[Tensor], float], baseline: Baseline
    ) -> None:
        scores = self.policy(inputs)
        orders = [random_order(scores.detach(), self._generator) for _ in range(self.method.draws)]
        advantages = baseline.advantages(torch.tensor([-change(order[:kept_units]) for order in orders]))
        likely = torch.stack([log_probability(scores, order, kept_units) for order in orders])
        self._optimiser.zero_grad()
        # Divided by the set's size: its log probability is a sum of as many terms.
        (-(advantages * likely).mean() / kept_units).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self._optimiser.step()


def random_order(scores: Tensor, generator: torch.Generator) -> Tensor:
    """Draw all units one by one with probabilities proportional to exp(score), int64 [U].

    Sorting the scores plus Gumbel noise gives exactly this (Kool et al., 2019, arXiv:1903.06059).
    """
    # Clamped: log(0) in either logarithm would be infinite.
    uniform = torch.rand(scores.shape, generator=generator, dtype=torch.float64).clamp(1e-300, 1 - 1e-16)
    return (scores.double() - (-uniform.log()).log()).argsort(descending=True)


def log_probability(scores: Tensor, order: Tensor, first: int) -> Tensor:
    """Return the log probability that a draw begins with the `first` units of `order`."""
    ordered = scores.double()[order]
    remaining = ordered.flip(0).logcumsumexp(0).flip(0)  # log sum of exp over the units not yet drawn
    return (ordered - remaining)[:first].sum()
