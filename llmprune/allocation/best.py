"""Try several allocations, and take the one whose pruned model is closest to the dense one.

Which rule is good differs between families and methods, so none is trusted: the model is pruned with each,
and the lowest KL divergence to the dense model on held-out windows decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

from llmprune import plugins, ranks
from llmprune.allocation.base import Allocation, Allocator, Problem
from llmprune.allocation.uniform import Uniform
from llmprune.errors import RequestError
from llmprune.measured import BudgetTrial, lowest, spelled, trial_in_words
from llmprune.methods.base import PruningMethod
from llmprune.model.anatomy import Anatomy
from llmprune.model.widths import Allowed, Budget
from llmprune.progress import say
from llmprune.tensors.several import joined
from llmprune.tensors.statistics import Nothing
from llmprune.text.windows import HELD_OUT, with_held_out
from llmprune.walk.demand import Measuring
from llmprune.walk.trial import Trials

PACKAGE = "llmprune.allocation"
RULES = {"weights": ["owl"], "units": ["global_threshold", "block_influence"]}
RISES = {"weights": (0.1, 0.2, 0.4), "units": (0.1, 0.2)}


@dataclass(frozen=True)
class Best(Allocator):
    """The last eighth of the windows is held out of the trials; pruning then calibrates on all of them."""

    needs_text: ClassVar = True
    holds_out: ClassVar = True
    serves: ClassVar = ("weights", "units")
    spreads: ClassVar = True

    candidates: list[str | dict[str, Any]] | None = None
    """Allocations to compare with `uniform`: names, or mappings of a `name` and options. By default, those
    that suit method and pattern, and ramps of several slopes."""

    def __post_init__(self) -> None:
        if self.candidates == []:
            raise RequestError("allocation.candidates", "none was named; name one to compare with uniform")
        for part in self.parts:
            if isinstance(part, Best):
                name = plugins.plain(part)["name"]
                raise RequestError(
                    "allocation.candidates", f"{name} was named, which compares others; leave it out"
                )

    @property
    def parts(self) -> tuple[Allocator, ...]:
        """`uniform` and the candidates, each once."""
        found: list[Allocator] = [Uniform()]
        for asked in self.candidates or ():
            part = plugins.build("allocation.candidates", PACKAGE, asked, Allocator)
            found += [part] if part not in found else []
        return tuple(found)

    def settled(self, method: PruningMethod, shares: str, sparsity: float) -> Self:
        """Name the default candidates."""
        if self.candidates is not None or shares not in self.serves:
            return self
        rules = {name: plugins.find(PACKAGE, name, Allocator) for name in RULES[shares]}
        suited = [n for n, rule in rules.items() if method.scores_alone() or not rule.compares_scores]
        room = 1.5 * min(sparsity, 1 - sparsity)  # blocks of different sizes leave less than twice that
        ramps = [{"name": "ramp", "rise": rise} for rise in RISES[shares] if rise <= room]
        return replace(self, candidates=[*suited, *ramps])

    def require_possible(self, anatomy: Anatomy, allowed: Allowed, sparsity: float) -> None:
        """Check every candidate."""
        for part in self.parts:
            part.require_possible(anatomy, allowed, sparsity)

    def measuring(self, blocks: int, removed: int, tokens: int) -> Measuring:
        """What the candidates measure, the dense states of held-out windows, and a trial of each."""
        walking = [part for part in self.parts if part.needs_text or part.compares_scores]
        found = [part.measuring(blocks, removed, tokens) for part in walking]
        held = max([one.held for one in found], default=0) + tokens // HELD_OUT
        return Measuring(1 + sum(one.passes for one in found), tokens, held, len(self.parts))

    def allocate(self, problem: Problem) -> Allocation:
        """Prune with every candidate's budget, and return the one of the lowest divergence.

        Raises:
            RequestError: there is one window.
        """
        contest = Contest(problem)
        parts = self.settled(problem.method, contest.kind, problem.sparsity).parts
        found = ranks.divided(parts, contest.by_rule)
        tried = [trial for _, trial in found]
        return Allocation(found[lowest(tried)][0], tried=tried)


class Contest:
    """Tries budgets: prunes with each, on all windows but the held-out ones, which judge it.

    Args:
        problem: with all calibration windows.
    """

    def __init__(self, problem: Problem) -> None:
        rest, held_out = with_held_out(problem.batches)
        self.problem = replace(problem, batches=rest, keeps_statistics=False)
        """Of the windows that are not held out."""
        calibrates = joined(problem.method.needs, problem.repair.gathers) is not Nothing
        self._trials = Trials(problem.store, rest if calibrates else [], held_out, problem.probe)

    @property
    def kind(self) -> str:
        """What is removed (`Sites.shares`)."""
        return "units" if self.problem.units else "weights"

    def by_rule(self, part: Allocator) -> tuple[Budget, BudgetTrial]:
        """The budget of an allocation, and what it is worth."""
        return self.worth(plugins.plain(part), part.allocate(self.problem).budget)

    def worth(self, named: dict[str, Any], budget: Budget) -> tuple[Budget, BudgetTrial]:
        """A budget, and what it is worth.

        Args:
            named: where it comes from: the name of an allocation, and its options.
            budget: the share that every site loses.
        """
        prune = partial(self.problem.prune, budget=budget)
        kl = self._trials.divergence(prune, f"trying {spelled(named)}")
        tried: BudgetTrial = {"allocation": named, "kl": kl if math.isfinite(kl) else None}
        say(f"{trial_in_words(tried)} to the dense model on held-out windows")
        return budget, tried
