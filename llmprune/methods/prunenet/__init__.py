"""PruneNet (Sengupta et al., 2025, arXiv:2501.15296): a policy, learned without data, ranks the units. On
SmolLM2-135M it is the best method without a data set, slightly better than `wanda` on generated text.

One small network scores the units of all blocks. Policy gradients train it to change the singular values of
the blocks' outputs as little as possible. It does not depend on the sparsity, so one policy serves all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from llmprune.methods.base import Examples, Learned, Method
from llmprune.methods.prunenet import training
from llmprune.methods.prunenet.policy import ByPolicy, require_same_shapes, restored
from llmprune.tensors.statistics import Gram, Nothing


@dataclass(frozen=True)
class PruneNet(Method[Gram]):
    """Trains a policy before it scores, on the activations of text that the model generates."""

    needs: ClassVar = Gram
    propagation: ClassVar = "dense"
    pattern: ClassVar = {"name": "units", "parts": "ffn"}
    calibration: ClassVar[dict[str, object]] = {
        "dataset": "self",
        "samples": 256,
        "length": 64,
        "redraws": 2,
    }
    serves: ClassVar = ("units",)

    policy: str | None = None
    """The policy.safetensors of an earlier run, to use instead of training."""

    passes: Annotated[int, Field(ge=1)] = 3
    """Training passes over all blocks."""

    steps: Annotated[int, Field(ge=1)] = 8
    """Updates of the policy per block and pass."""

    draws: Annotated[int, Field(ge=2)] = 4
    """Sets of units to try for one update."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of a block's units to remove in training."""

    rate: Annotated[float, Field(gt=0)] = 0.02
    """Learning rate."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the draws and of the policy's initial weights."""

    @property
    def training_passes(self) -> int:
        """One for each training pass, and one to evaluate the last policy."""
        return 0 if self.policy else self.passes + 1

    @property
    def state_file(self) -> str | None:
        """The file of the policy, if one was given."""
        return self.policy

    def learned(self, examples: Examples, earlier: Learned | None) -> ByPolicy:
        """Train the policies, or restore those of an earlier run.

        Raises:
            RequestError: they were trained for another model.
        """
        if earlier is None:
            return training.trained(self, examples)
        found = restored(earlier)
        if earlier.file is None:  # of this run, and so for this model
            return found
        sites = (weights for weights, _ in examples(Nothing))
        require_same_shapes(found.record["shapes"], sites, earlier.file)
        return ByPolicy(found.policies, found.record | {"file": earlier.file})
