"""Teach a method that learns before it scores, or take what it learned from a file.

Policy gradient (Williams, 1992) on whole sets of units: a set is drawn without replacement (Plackett-Luce),
and made more likely by how much less it changes the block's spectrum than sets drawn for that block before.

Letters used in shapes: U units, K units that stay.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmprune.allocation.base import Problem
from llmprune.checkpoint.shards import save_atomically
from llmprune.errors import RequestError
from llmprune.methods.base import Method, Weights
from llmprune.methods.prunenet import PruneNet
from llmprune.report import Learned
from llmprune.tensors.statistics import Gram
from llmprune.training.policy import ByPolicy, Policy, facts, part, shape
from llmprune.training.spectrum import Spectrum

FILE = "policy.safetensors"
MEMORY = 0.9  # of a block's moving baseline, from one update to the next


def ready(problem: Problem, left: Path | None) -> Method[Any]:
    """The method that scores: the one that was asked for, or what it becomes once it has learned.

    Args:
        problem: has the method that was asked for, and gives the blocks of the dense model.
        left: the folder of this run, if it was begun before: what it learned then is taken from there.

    Raises:
        RequestError: the policy that was named does not fit this model.
    """
    asked = problem.method
    if not isinstance(asked, PruneNet):
        return asked
    if left is not None and (left / FILE).is_file():
        return ByPolicy(*read(left / FILE))
    if asked.policy is None:
        return ByPolicy(*_trained(asked, problem))
    policies, about = read(Path(asked.policy).expanduser())
    _require_fitting(about["shapes"], problem, asked.policy)
    return ByPolicy(policies, about | {"file": asked.policy})


def require_readable(method: Method[Any]) -> None:
    """Refuse a policy that is none, before a text is read or written.

    Raises:
        RequestError: as `read`.
    """
    if isinstance(method, PruneNet) and method.policy is not None:
        read(Path(method.policy).expanduser())


def about(method: Method[Any]) -> Learned | None:
    """What the report says of what a method has learned."""
    return cast(Learned, method.about) if isinstance(method, ByPolicy) else None


def keep(method: Method[Any], folder: Path) -> None:
    """Leave what a method has learned in the folder of a run, for it to be gone on with and used again."""
    if isinstance(method, ByPolicy) and not (folder / FILE).is_file():
        write(folder, method.policies, method.about)


def read(file: Path) -> tuple[dict[str, Policy], dict[str, Any]]:
    """A policy and what is known about it.

    Raises:
        RequestError: there is none.
    """
    try:
        about = json.loads(file.with_suffix(".json").read_text())
        tensors = load_file(file)
        policies = {}
        for name, made_for in about["shapes"].items():
            policies[name] = Policy(_facts_of(made_for))
            own = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{name}.")}
            policies[name].load_state_dict(own)
    except Exception as error:
        raise RequestError(
            "policy", f"{file} and its .json hold no policy that `prunenet` wrote ({type(error).__name__})"
        ) from error
    return policies, about


def write(folder: Path, policies: dict[str, Policy], about: dict[str, Any]) -> None:
    """Keep a policy, with what is known about it, so that other runs can use it."""
    (folder / FILE).with_suffix(".json").write_text(json.dumps(about, indent=2))
    tensors = {f"{name}.{key}": t for name, p in policies.items() for key, t in p.state_dict().items()}
    save_atomically(tensors, folder / FILE)


def _facts_of(made_for: dict[str, Any]) -> int:
    return 3 + int(made_for["factors"])


def _require_fitting(shapes: dict[str, Any], problem: Problem, file: str) -> None:
    for stage in problem.stages(forward=False):
        for site in stage.sites:
            weights = problem.store.weights(site)
            if part(weights) not in shapes:
                raise RequestError(
                    "policy",
                    f"{file} is for {' and '.join(shapes)} alone; set pattern.parts to that or train another",
                )
            found, made_for = shape(weights), shapes[part(weights)]
            if found != made_for:
                raise RequestError("policy", f"{file} was made for {made_for}, and {site.name} is {found}")
        return


@dataclass
class _Baseline:
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
class _Pupil:
    """The policy of one part of the blocks while it is trained."""

    asked: PruneNet
    made_for: dict[str, Any]
    policy: Policy = field(init=False)
    best: Policy = field(init=False)
    curve: list[float] = field(default_factory=list)
    """What the policy loses of the spectrum, mean over blocks, before each pass and at the end."""

    def __post_init__(self) -> None:
        self.policy = Policy(_facts_of(self.made_for), self.asked.seed)
        self.best = copy.deepcopy(self.policy)
        self._optimiser = torch.optim.Adam(self.policy.parameters(), lr=self.asked.rate)
        self._generator = torch.Generator().manual_seed(self.asked.seed)
        self._baselines: dict[int, _Baseline] = {}
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
        seen = facts(weights, statistic).cpu()
        spectrum = Spectrum(weights.matrix.float(), statistic.value)
        stays = weights.units - round(self.asked.share * weights.units)
        width = weights.matrix.shape[1] // weights.units

        def lost(kept: Tensor) -> float:
            gone = torch.ones(weights.units, dtype=torch.bool)
            gone[kept] = False
            return spectrum.lost(gone.repeat_interleave(width).to(weights.matrix.device))

        self._losses.append(lost(self._judged(seen).topk(stays).indices))
        for _ in range(self.asked.steps if learning else 0):
            self._step(seen, stays, lost, self._baselines.setdefault(weights.index, _Baseline()))

    @torch.enable_grad()
    def _step(self, seen: Tensor, stays: int, lost: Callable[[Tensor], float], baseline: _Baseline) -> None:
        scores = self.policy(seen)
        orders = [drawn(scores.detach(), self._generator) for _ in range(self.asked.draws)]
        advantages = baseline.advantages(torch.tensor([-lost(order[:stays]) for order in orders]))
        likely = torch.stack([log_probability(scores, order, stays) for order in orders])
        self._optimiser.zero_grad()
        (-(advantages * likely).mean() / stays).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self._optimiser.step()


def _trained(asked: PruneNet, problem: Problem) -> tuple[dict[str, Policy], dict[str, Any]]:
    """Visit every block some times, and once more to judge what came out."""
    start = time.perf_counter()
    pupils: dict[str, _Pupil] = {}
    for number in range(asked.passes + 1):
        for weights, statistic in _blocks(problem):
            name = part(weights)
            if name not in pupils:
                pupils[name] = _Pupil(asked, shape(weights))
            pupils[name].visit(weights, statistic, learning=number < asked.passes)
        for pupil in pupils.values():
            pupil.end_pass()
            pupil.start_pass()
    about = {
        "shapes": {name: pupil.made_for for name, pupil in pupils.items()},
        "losses": {name: pupil.curve for name, pupil in pupils.items()},
        "share": asked.share,
        "seed": asked.seed,
        "seconds": time.perf_counter() - start,
    }
    return {name: pupil.best.requires_grad_(False) for name, pupil in pupils.items()}, about


def _blocks(problem: Problem) -> Iterable[tuple[Weights, Gram]]:
    for site, statistic in problem.measured(Gram):
        assert isinstance(statistic, Gram)
        yield problem.store.weights(site), statistic


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
