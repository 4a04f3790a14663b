"""LoRA adapters, trained on text and merged into the weights, with higher ranks in more important blocks.

The recovery of CFSP (Wang et al., 2025, arXiv:2409.13199), written from the paper: its code was not released.
The rank of a block's adapters (LoRA, arXiv:2106.09685) depends on the angle between its input and output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from llmprune.allocation.block_influence import BlockInfluence, influence
from llmprune.checkpoint.store import Store
from llmprune.errors import JobError, RequestError
from llmprune.loading import load
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.recovery.base import Recovered, Recovery, Task
from llmprune.training.steps import Training
from llmprune.walk.walk import Walk


@dataclass(frozen=True)
class Lora(Recovery):
    """Needs the whole pruned model in memory. Zeros of a masked or padded checkpoint stay zeros."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Mean rank over the blocks."""

    alpha: Annotated[int, Field(ge=1)] = 2
    """Scale of the adapters, the same for all ranks (alpha / r in the terms of the LoRA paper)."""

    epochs: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    batch: Annotated[int, Field(ge=1)] = 2
    """Windows per step."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def recover(self, task: Task) -> Recovered:
        """Train the adapters, merge them and write the model."""
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise RequestError("recovery", "lora needs peft; run pip install llmprune[recover]") from error
        assert task.pruned.source is not None
        if not task.pruned.fits_whole():
            raise JobError(
                "lora trains the whole pruned model, and memory does not hold it twice; use reconstruct, "
                "which needs one block at a time"
            )
        device, dtype = task.pruned.resources.device, task.pruned.resources.dtype_name
        model, _ = load(str(task.pruned.source.folder), device=str(device), dtype=dtype, kernels="none")
        linear = Anatomy(model, LinearLayers())
        # Zeros in a padded checkpoint are removed units.
        keep_zeros = task.layout in (None, "padded")
        zeros = {site.name: site.weight == 0 for site in linear.sites} if keep_zeros else {}
        ranks = self._ranks(linear, task)
        by_layer = {site.name: ranks[site.block] for site in linear.sites}
        torch.manual_seed(self.seed)
        with torch.enable_grad():
            adapted = get_peft_model(
                model,
                LoraConfig(
                    r=self.rank,
                    lora_alpha=self.alpha * self.rank,
                    target_modules=list(by_layer),
                    rank_pattern=by_layer,
                    # peft scales by alpha / rank of the layer, so alpha must follow the rank.
                    alpha_pattern={name: self.alpha * rank for name, rank in by_layer.items()},
                    task_type="CAUSAL_LM",
                ),
            )
            training = Training(adapted, self.learning_rate, self.seed, task.draft.state)
            training.run(self._batches(task.tokens), "training the adapters")
        merged = adapted.merge_and_unload()
        merged.eval()
        # Looked up again: peft wrapped the layers. The low-rank update is dense, so zeros are restored.
        for site in Anatomy(merged, LinearLayers()).sites:
            if site.name in zeros:
                site.weight.masked_fill_(zeros[site.name], 0)
        logits = task.write(merged)
        return Recovered({"ranks": ranks, "losses": training.losses}, logits)

    def _ranks(self, anatomy: Anatomy, task: Task) -> list[int]:
        """Return the rank of every block's adapters, at least 1."""
        angles = []
        for stage in Walk(Store(anatomy), task.batches, task.pruned.probe()).stages("measuring the blocks"):
            stage.outputs = stage.run()
            angles.append(influence(stage))
        shares = BlockInfluence().weights(torch.tensor(angles, dtype=torch.float64))
        return [max(1, round(self.rank * share)) for share in shares.tolist()]

    def _batches(self, tokens: Tensor) -> list[Tensor]:
        """Return the windows of every step, shuffled in each epoch."""
        order = torch.Generator().manual_seed(self.seed)
        return [
            tokens[picked]
            for _ in range(self.epochs)
            for picked in torch.randperm(len(tokens), generator=order).split(self.batch)
        ]
