"""Rounds of swaps over all matrices of a model, judged by the loss on text that gave no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmprune.checkpoint.shards import save_atomically
from llmprune.recovery.refine.masks import Loss, Masked
from llmprune.recovery.refine.swaps import Problem, candidates, solve

MEMORY = 0.5  # weight of earlier rounds in the running gradient and curvature
TRIES = 3  # masks of one round; each trusts the gradient half as much, or twice where nothing moved
GROWTH = 1.5  # of that trust, after a round whose first mask won
RICH = 4  # candidates come from the best of so many groups


@dataclass(frozen=True)
class Settings:
    """The share of weights that are candidates, how the problem is weighed, and the seed of its search."""

    share: float
    alpha: float
    coupling: float
    ridge: float
    seed: int


class Refinement:
    """The model's masks as they get better; it resumes from a file with the same bits.

    Args:
        masks: of every matrix.
        loss: of a window.
        judging: windows [N, L] on which a mask is tried.
        how: the settings of the problem.
        file: where the state is kept.
    """

    def __init__(self, masks: list[Masked], loss: Loss, judging: Tensor, how: Settings, file: Path) -> None:
        self._masks, self._loss, self._judging, self._how, self._file = masks, loss, judging, how, file
        self._alpha = how.alpha
        self.losses: list[float] = []
        """On the judging windows: at first, and after every round."""
        self.swaps: list[int] = []
        """Weights that came back, by round."""
        self.seconds = 0.0
        """Spent in complete rounds."""
        self._gradients = [torch.zeros_like(mask.values, dtype=torch.float32) for mask in masks]
        self._curvatures = [torch.zeros_like(gradient) for gradient in self._gradients]
        if file.is_file():
            self._restore(load_file(file))

    def begin(self, windows: Tensor) -> None:
        """Measure gradient and curvature on windows [N, L], by which the first candidates are chosen."""
        if not self.losses:
            self.losses = [self._loss.mean(self._judging)]
            self._observe(windows, [], memory=0.0)

    def round(self, windows: Tensor) -> None:
        """Choose candidates by earlier windows, weigh them by these [N, L], and swap what lowers the loss."""
        chosen = self._candidates()
        jacobian = self._observe(windows, chosen, memory=MEMORY)
        before = [mask.gone for mask in self._masks]
        self.losses.append(self.losses[-1])
        self.swaps.append(0)
        for attempt in range(TRIES):
            if self._accepted(before, chosen, jacobian):
                self._alpha *= 1 if attempt else GROWTH
                break

    def _accepted(self, before: list[Tensor], chosen: list[Tensor], jacobian: Tensor) -> bool:
        """Swap, and see if the loss falls; if not, restore the masks, and trust the gradient otherwise."""
        swaps = self._swap(before, chosen, jacobian)
        if swaps and (loss := self._loss.mean(self._judging)) < self.losses[-1]:
            self.losses[-1], self.swaps[-1] = loss, swaps
            return True
        for mask, gone in zip(self._masks, before, strict=True):
            mask.remove(gone)
        self._alpha *= 0.5 if swaps else 2
        return False

    def save(self, seconds: float) -> None:
        """Write the state after a round that took so long."""
        self.seconds += seconds
        kept = {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "swaps": torch.tensor(self.swaps, dtype=torch.int64),
            "numbers": torch.tensor([self._alpha, self.seconds], dtype=torch.float64),
        }
        for mask, gradient, curvature in zip(self._masks, self._gradients, self._curvatures, strict=True):
            name = mask.site.name
            kept |= {f"{name}:gone": mask.gone, f"{name}:gradient": gradient, f"{name}:curvature": curvature}
        save_atomically({key: tensor.contiguous() for key, tensor in kept.items()}, self._file)

    def _restore(self, kept: dict[str, Tensor]) -> None:
        self.losses, self.swaps = kept["losses"].tolist(), kept["swaps"].tolist()
        self._alpha, self.seconds = kept["numbers"].tolist()
        for mask, gradient, curvature in zip(self._masks, self._gradients, self._curvatures, strict=True):
            name = mask.site.name
            mask.remove(kept[f"{name}:gone"].to(mask.values.device))
            gradient.copy_(kept[f"{name}:gradient"])
            curvature.copy_(kept[f"{name}:curvature"])

    def _candidates(self) -> list[Tensor]:
        """Flat indices [G, C] of every matrix's weights that promise most, each alone."""
        smallest = min(mask.group for mask in self._masks)
        each = min(max(1, round(RICH * self._how.share * smallest / 2)), smallest // 2)
        found = []
        for mask, gradient, curvature in zip(self._masks, self._gradients, self._curvatures, strict=True):
            gone = mask.gone
            step = torch.where(gone, mask.values, -mask.values)
            cost = self._alpha * gradient * step + curvature * step.square() / 2
            # A weight that is zero in the dense model would count as removed if it were kept.
            wide = -1, mask.group
            usable = (mask.values != 0).reshape(wide)
            found.append(candidates(cost.reshape(wide), gone.reshape(wide), usable, each))
        promises = torch.cat([promise for _, promise in found])
        wanted = self._how.share * sum(mask.values.numel() for mask in self._masks) / (2 * each)
        limit = promises.sort().values[: max(1, round(wanted))][-1]
        return [index[(promise <= limit) & promise.isfinite()] for index, promise in found]

    def _observe(self, windows: Tensor, chosen: list[Tensor], memory: float) -> Tensor:
        """Update the running means by windows [N, L]; return J at the candidates [N, G, C]."""
        for running in (*self._gradients, *self._curvatures):
            running.mul_(memory)
        draws = torch.Generator().manual_seed(self._how.seed + len(self.losses))
        share = (1 - memory) / len(windows)
        rows = []
        for ids in windows:
            row = []
            for number, (gradient, root) in enumerate(self._loss.backward(ids, self._masks, draws)):
                self._gradients[number].add_(gradient, alpha=share)
                self._curvatures[number].addcmul_(root, root, value=share)
                if chosen:
                    row.append(root.reshape(-1)[chosen[number]])
            rows.append(row)
        return torch.stack([torch.cat(row) for row in rows]) if chosen else torch.empty(0)

    def _swap(self, before: list[Tensor], chosen: list[Tensor], jacobian: Tensor) -> int:
        """Solve the problem of all matrices, set their new masks, and return how many weights came back."""

        def gathered(tensors: list[Tensor]) -> Tensor:
            return torch.cat([t.reshape(-1)[where] for t, where in zip(tensors, chosen, strict=True)])

        how = self._how
        problem = Problem(
            gathered([mask.values for mask in self._masks]).float(),
            gathered(before),
            gathered(self._gradients),
            gathered(self._curvatures),
            jacobian,
            self._alpha,
            how.coupling,
            how.ridge,
        )
        found = solve(problem, torch.Generator().manual_seed(how.seed + len(self.losses)))
        parts = found.split([len(where) for where in chosen])
        for mask, gone, where, part in zip(self._masks, before, chosen, parts, strict=True):
            after = gone.flatten().clone()
            after[where] = part
            mask.remove(after.view(gone.shape))
        return int((problem.gone & ~found).sum())
