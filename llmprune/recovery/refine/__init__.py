"""Refine a mask: iterative Combinatorial Brain Surgeon (Rosenberg et al., 2024, arXiv:2411.17796).

In every round, some removed weights of each layer come back with their original value and as many kept ones
go, where the gradient and the curvature of the loss promise most; it counts if the loss on other text falls.
Written from the mathematics of the paper. Deviations: all layers move in one round, weights compete as the
pattern says, every mask is tried on text, and curvature between weights counts only where `coupling` asks for
it: with it the search found few swaps that paid.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from llmprune.checkpoint.opened import Opened
from llmprune.errors import JobError, RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.progress import track
from llmprune.recovery.base import Recovered, Recovery, Task
from llmprune.recovery.refine.masks import Loss, Masked
from llmprune.recovery.refine.originals import pattern_of, require_mask, require_unmoved, twins
from llmprune.recovery.refine.rounds import Refinement, Settings

JUDGING = 4  # one of so many calibration windows judges masks, and gives no gradient
COPIES = 6  # models, in bytes: the two, a gradient, running means of gradient and curvature, activations


@dataclass(frozen=True)
class Refine(Recovery):
    """Needs both models in memory. Every matrix, row or group of M keeps as many weights as before."""

    serves: ClassVar = ("weights",)

    rounds: Annotated[int, Field(ge=1)] = 8
    candidates: Annotated[float, Field(gt=0, le=1)] = 0.004
    """Share of all weights that may swap in one round, half of them removed and half kept."""

    windows: Annotated[int, Field(ge=1)] = 16
    """Windows of each round: fresh ones, until all were used once."""

    seconds: Annotated[float, Field(gt=0)] | None = None
    """Start no round that would end later."""

    loss: Literal["teacher", "text"] = "teacher"
    """KL to the dense model, or the cross-entropy of the text."""

    original: Literal["dense", "pruned"] = "dense"
    """Whose value a weight has: the dense model's, or the compensated one where the pruned model has one."""

    alpha: Annotated[float, Field(gt=0)] = 1e-3
    """Trust in the gradient at first; halved after a mask that lost, raised after one that won."""

    coupling: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much of the curvature holds between weights (1 in the paper); the rest is of each weight alone."""

    ridge: Annotated[float, Field(ge=0)] = 0.0
    """Penalty on the squared change of the weights."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def require(self, pruned: Opened, dense: Opened, samples: int, length: int) -> None:
        """Refuse what has no mask to refine, no original weights, or too little text.

        Raises:
            RequestError: the sentence says what to do.
        """
        require_mask(pruned, dense, "refine swaps")
        if samples < 2:
            raise RequestError(
                "calibration.samples",
                f"{samples} was asked, and refine judges masks on windows of their own; ask for 2 or more",
            )
        if self.original == "dense":
            require_unmoved(pruned, dense)

    def recover(self, task: Task) -> Recovered:
        """Refine round by round, and write the model."""
        if not task.pruned.fits_whole(COPIES):
            raise JobError(
                "refine holds the pruned and the dense model and three gradients, and memory does not; use "
                "reconstruct, which needs one block at a time"
            )
        model, teacher = task.pruned.loaded(), task.dense.loaded()
        masks = self._masks(task, model, teacher)
        loss = Loss(model, teacher if self.loss == "teacher" else None)
        judging, batches = self._windows(task.tokens)
        how = Settings(self.candidates, self.alpha, self.coupling, self.ridge, self.seed)
        state = Refinement(masks, loss, judging, how, task.draft.state)
        start = time.monotonic()
        state.begin(batches[0])
        for number, windows in enumerate(track(batches[1:], "refining the mask")):
            if number < len(state.swaps):
                continue
            spent = time.monotonic() - start + state.seconds
            if self.seconds and spent * (number + 1) / max(number, 1) > self.seconds:
                break
            state.round(windows)
            state.save(time.monotonic() - start)
            start = time.monotonic()
        logits = task.write(model)
        return Recovered({"losses": state.losses, "swaps": state.swaps}, logits)

    def _windows(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the windows that judge [N, L], and those of the first gradient and of every round."""
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(self.seed))
        judging, rest = tokens[order].split([held := max(1, len(tokens) // JUDGING), len(tokens) - held])
        count = min(self.windows, len(rest))
        places = torch.arange((self.rounds + 1) * count) % len(rest)
        return judging, list(rest[places].split(count))

    def _masks(self, task: Task, model: Any, teacher: Any) -> list[Masked]:
        pattern = pattern_of(task.pruned)
        ours, theirs = (Anatomy(whole, LinearLayers()) for whole in (model, teacher))
        model.requires_grad_(False)
        masks = []
        for site, twin in twins(ours, theirs):
            weight, dense = (s.matrix(s.weight) for s in (site, twin))
            # The dense model's own tensor where that serves, and so no third copy of all weights.
            values = dense if self.original == "dense" else torch.where(weight != 0, weight, dense)
            whole = getattr(pattern, "compete", "row") == "matrix"
            masks.append(Masked(site, values, pattern.group or site.inputs * (site.outputs if whole else 1)))
            masks[-1].parameter.requires_grad_(True)
        return masks
