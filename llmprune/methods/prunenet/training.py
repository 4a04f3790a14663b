"""Train the policies by policy gradient (Williams, 1992) on whole sets of units.

A set is drawn without replacement (Plackett-Luce), and made more likely by how much less it changes the
block's spectrum than sets drawn for that block before.

Letters used in shapes: U units, K units that stay.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmprune.methods.base import Examples, Weights
from llmprune.methods.prunenet.policy import ByPolicy, Policy, feature_count, features, part, shape
from llmprune.methods.prunenet.spectrum import Spectrum
from llmprune.tensors.statistics import Gram

if TYPE_CHECKING:  # the package imports this module
    from llmprune.methods.prunenet import PruneNet

MEMORY = 0.9  # of a block's moving baseline, from one update to the next


def trained(asked: PruneNet, examples: Examples) -> ByPolicy:
    """Visit every block `passes` times, and once more to judge the last policy."""
    start = time.perf_counter()
    trainers: dict[str, Trainer] = {}
    for number in range(asked.passes + 1):
        for weights, statistic in examples(Gram):
            name = part(weights)
            if name not in trainers:
                trainers[name] = Trainer(asked, shape(weights))
            trainers[name].visit(weights, statistic, learning=number < asked.passes)
        for trainer in trainers.values():
            trainer.end_pass()
            trainer.start_pass()
    record = {
        "shapes": {name: trainer.made_for for name, trainer in trainers.items()},
        "losses": {name: trainer.curve for name, trainer in trainers.items()},
        "share": asked.share,
        "seed": asked.seed,
        "seconds": time.perf_counter() - start,
    }
    return ByPolicy({name: t.best.requires_grad_(False) for name, t in trainers.items()}, record)


@dataclass
class Baseline:
    """What a block's draws have been worth so far: a moving mean and spread."""

    mean: float = 0.0
    spread: float = 0.0
    seen: bool = False

    def advantages(self, rewards: Tensor) -> Tensor:
        """How much better than usual each draw was, in units of the usual spread."""
        if not self.seen:
            self.mean, self.spread, self.seen = float(rewards.mean()), float(rewards.std()), True
        advantages = (rewards - self.mean) / max(self.spread, 1e-12)
        self.mean += (1 - MEMORY) * (float(rewards.mean()) - self.mean)
        self.spread += (1 - MEMORY) * (float(rewards.std()) - self.spread)
        return advantages


@dataclass
class Trainer:
    """Trains the policy of one part of the blocks."""

    asked: PruneNet
    made_for: dict[str, Any]
    policy: Policy = field(init=False)
    best: Policy = field(init=False)
    curve: list[float] = field(default_factory=list)
    """What the policy loses of the spectrum, mean over blocks, before each pass and at the end."""

    def __post_init__(self) -> None:
        self.policy = Policy(feature_count(self.made_for), self.asked.seed)
        self.best = copy.deepcopy(self.policy)
        self._optimiser = torch.optim.Adam(self.policy.parameters(), lr=self.asked.rate)
        self._generator = torch.Generator().manual_seed(self.asked.seed)
        self._baselines: dict[int, Baseline] = {}
        self.start_pass()

    def start_pass(self) -> None:
        """The policy as it is now is judged on every block while training goes on."""
        self._judged, self._losses = copy.deepcopy(self.policy), list[float]()

    def end_pass(self) -> None:
        """Keep the judged policy if it is the best so far."""
        loss = sum(self._losses) / len(self._losses)
        if not self.curve or loss < min(self.curve):
            self.best = self._judged
        self.curve.append(loss)

    def visit(self, weights: Weights, statistic: Gram, *, learning: bool) -> None:
        """Judge the policy on one block, and train it there."""
        seen = features(weights, statistic).cpu()
        spectrum = Spectrum(weights.matrix.float(), statistic.value)
        stays = weights.units - round(self.asked.share * weights.units)
        width = weights.matrix.shape[1] // weights.units

        def lost(kept: Tensor) -> float:
            gone = torch.ones(weights.units, dtype=torch.bool)
            gone[kept] = False
            return spectrum.lost(gone.repeat_interleave(width).to(weights.matrix.device))

        self._losses.append(lost(self._judged(seen).topk(stays).indices))
        for _ in range(self.asked.steps if learning else 0):
            self._step(seen, stays, lost, self._baselines.setdefault(weights.index, Baseline()))

    @torch.enable_grad()
    def _step(self, seen: Tensor, stays: int, lost: Callable[[Tensor], float], baseline: Baseline) -> None:
        scores = self.policy(seen)
        orders = [drawn(scores.detach(), self._generator) for _ in range(self.asked.draws)]
        advantages = baseline.advantages(torch.tensor([-lost(order[:stays]) for order in orders]))
        likely = torch.stack([log_probability(scores, order, stays) for order in orders])
        self._optimiser.zero_grad()
        (-(advantages * likely).mean() / stays).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self._optimiser.step()


def drawn(scores: Tensor, generator: torch.Generator) -> Tensor:
    """All units in a random order, int64 [U]: the next is each time drawn in proportion to exp(score).

    Adding Gumbel noise and sorting gives exactly that (Kool et al., 2019, arXiv:1903.06059).
    """
    uniform = torch.rand(scores.shape, generator=generator, dtype=torch.float64).clamp(1e-300, 1 - 1e-16)
    return (scores.double() - (-uniform.log()).log()).argsort(descending=True)


def log_probability(scores: Tensor, order: Tensor, first: int) -> Tensor:
    """The logarithm of the probability that the draw begins with the `first` units of `order`."""
    ordered = scores.double()[order]
    left = ordered.flip(0).logcumsumexp(0).flip(0)  # log sum of exp over the units not yet drawn
    return (ordered - left)[:first].sum()
