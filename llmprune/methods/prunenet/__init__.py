"""PruneNet (Sengupta et al., 2025, arXiv:2501.15296): a policy, learned without data, ranks the units. On
SmolLM2-135M it wins where there is no text, by little over `wanda` on text that the model writes itself.

One small network scores the units of all blocks. It is trained by policy gradient to change the singular
values of the blocks' outputs as little as it can, and does not know how many units will go: one policy serves
every sparsity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from llmprune.methods.base import Examples, Learned, Method
from llmprune.methods.prunenet import training
from llmprune.methods.prunenet.policy import ByPolicy, require_fit, restored
from llmprune.tensors.statistics import Gram, Nothing


@dataclass(frozen=True)
class PruneNet(Method[Gram]):
    """Learns before it scores, from inputs that the model's own text leads to."""

    needs: ClassVar = Gram
    propagation: ClassVar = "dense"
    pattern: ClassVar = {"name": "units", "parts": "ffn"}
    calibration: ClassVar[dict[str, Any]] = {
        "dataset": "self",
        "samples": 256,
        "length": 64,
        "redraws": 2,
    }
    serves: ClassVar = ("units",)

    policy: str | None = None
    """The policy.safetensors of an earlier run, which is then used as it is."""

    passes: Annotated[int, Field(ge=1)] = 3
    """How often every block is visited in training."""

    steps: Annotated[int, Field(ge=1)] = 8
    """Updates of the policy at every visit."""

    draws: Annotated[int, Field(ge=2)] = 4
    """Sets of units that are tried for one update."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """How much of a block goes in training."""

    rate: Annotated[float, Field(gt=0)] = 0.02
    """Learning rate."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the draws."""

    @property
    def training_passes(self) -> int:
        """One for each visit, and one to judge the last policy."""
        return 0 if self.policy else self.passes + 1

    @property
    def reuses(self) -> str | None:
        """The file of the policy."""
        return self.policy

    def learned(self, examples: Examples, earlier: Learned | None) -> ByPolicy:
        """The policy, trained or as it was found.

        Raises:
            RequestError: it was made for another model.
        """
        if earlier is None:
            return training.trained(self, examples)
        found = restored(earlier)
        if earlier.file is None:
            return found
        require_fit(found.record["shapes"], (weights for weights, _ in examples(Nothing)), earlier.file)
        return ByPolicy(found.policies, found.record | {"file": earlier.file})
